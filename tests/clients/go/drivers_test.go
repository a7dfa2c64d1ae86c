// Package drivers has pgx read every answer of the extension: the calls of tests/clients/calls.sql.
//
// tests/run-clients starts the server. Its clock stands still, and its time zone is not UTC.
package drivers

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v4"
)

type call struct {
	call, statement string
	args            []*string
	error           *string
	columns, types  []string
}

// Where an application reads a column of that type to.
var destinations = map[string]func() interface{}{
	"boolean":                  func() interface{} { return new(*bool) },
	"integer":                  func() interface{} { return new(*int32) },
	"bigint":                   func() interface{} { return new(*int64) },
	"double precision":         func() interface{} { return new(*float64) },
	"text":                     func() interface{} { return new(*string) },
	"timestamp with time zone": func() interface{} { return new(*time.Time) },
	"bytea":                    func() interface{} { return new([]byte) },
	"text[]":                   func() interface{} { return new([]string) },
	"integer[]":                func() interface{} { return new([]int32) },
	"void":                     func() interface{} { return nil }, // pgx leaves such a column out
}

func connect(t *testing.T) *pgx.Conn {
	conn, err := pgx.Connect(context.Background(), "user=postgres database=drivers") // PGHOST and PGPORT say where
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func sqlstate(err error) string {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return state.SQLState()
	}
	return ""
}

// shows tells whether a value is what PostgreSQL writes in JSON, without the quotes of a string.
func shows(destination interface{}, expected *string) bool {
	if destination == nil {
		return true
	}
	value := reflect.ValueOf(destination).Elem()
	if value.IsNil() || expected == nil {
		return value.IsNil() && expected == nil
	}
	switch value := destination.(type) {
	case **string:
		return **value == *expected
	case *[]byte:
		return `\x`+hex.EncodeToString(*value) == *expected
	case **time.Time:
		at, err := time.Parse(time.RFC3339Nano, *expected)
		return err == nil && at.Equal(**value)
	default:
		text, err := json.Marshal(value)
		return err == nil && string(text) == *expected
	}
}

// read returns what is wrong with the answer to a call.
func read(conn *pgx.Conn, c call, options ...interface{}) error {
	for _, arg := range c.args {
		options = append(options, arg)
	}
	rows, err := conn.Query(context.Background(), c.statement, options...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var expected []*string
		var destinations_ []interface{}
		for n, field := range rows.FieldDescriptions()[:len(c.columns)] {
			destination, known := destinations[c.types[n]]
			if !known || string(field.Name) != c.columns[n] {
				return fmt.Errorf("column %s of type %s", field.Name, c.types[n])
			}
			destinations_ = append(destinations_, destination())
		}
		if err := rows.Scan(append(destinations_, &expected)...); err != nil {
			return err
		}
		if len(expected) != len(c.columns) {
			return errors.New("another number of columns")
		}
		for n := range expected {
			if !shows(destinations_[n], expected[n]) {
				return fmt.Errorf("%s is not what the server says", c.columns[n])
			}
		}
	}
	return rows.Err()
}

func calls(t *testing.T, conn *pgx.Conn, client string) (calls []call) {
	rows, err := conn.Query(context.Background(), "SELECT call, statement, args, error, columns, types FROM calls($1)", client)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var c call
		if err := rows.Scan(&c.call, &c.statement, &c.args, &c.error, &c.columns, &c.types); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
	if rows.Err() != nil || len(calls) == 0 {
		t.Fatal("no calls", rows.Err())
	}
	return calls
}

func readsEveryAnswer(t *testing.T, client string, options ...interface{}) {
	conn := connect(t)
	for _, c := range calls(t, conn, client) {
		err := read(conn, c, options...)
		if c.error != nil {
			if sqlstate(err) != *c.error {
				t.Errorf("%s: %v, and not %s", c.call, err, *c.error)
			}
		} else if err != nil {
			t.Errorf("%s: %v", c.call, err)
		}
	}
}

func TestReadsEveryAnswerInText(t *testing.T) {
	readsEveryAnswer(t, "pgx, text", pgx.QueryResultFormats{pgx.TextFormatCode})
}

func TestReadsEveryAnswerInBinary(t *testing.T) {
	readsEveryAnswer(t, "pgx, binary", pgx.QueryResultFormats{pgx.BinaryFormatCode})
}

func TestReadsEveryAnswerByTheSimpleProtocol(t *testing.T) {
	readsEveryAnswer(t, "pgx, simple protocol", pgx.QuerySimpleProtocol(true))
}

func TestWouldNotReadInfinity(t *testing.T) {
	infinity := call{
		statement: "SELECT timestamptz 'infinity' AS retry_at, ARRAY['infinity'] AS expected",
		columns:   []string{"retry_at"}, types: []string{"timestamp with time zone"},
	}
	if read(connect(t), infinity) == nil {
		t.Error("it reads infinity")
	}
}

func TestAnIdThatIsANumberIsAnErrorOfTheDriver(t *testing.T) {
	var accepted bool
	err := connect(t).QueryRow(context.Background(), "SELECT totp_verify($1, $2)", 42, "123456").Scan(&accepted)
	if err == nil || sqlstate(err) != "" {
		t.Error(err)
	}
}
