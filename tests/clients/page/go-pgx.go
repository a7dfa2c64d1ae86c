package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v4/pgxpool"
)

var pool *pgxpool.Pool

// THE BLOCK

func main() {
	ctx := context.Background()
	var err error
	if pool, err = pgxpool.Connect(ctx, ""); err != nil {
		log.Fatal(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		key, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		if words[0] == "enroll" {
			uri, err := enroll(ctx, key)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(uri)
			continue
		}
		var code *string
		if len(words) > 2 {
			code = &words[2]
		}
		fmt.Println(secondFactor(ctx, key, code))
	}
}
