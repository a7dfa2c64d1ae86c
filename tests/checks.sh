# shellcheck shell=bash
# Sourced by what tests on a new system: checks that are counted.

passed=0 failed=0
# check WHAT COMMAND...: it passes if the command does; its output is shown if it does not.
check() {
    local what=$1
    shift
    if "$@" >/tmp/output 2>&1; then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what"
        tail -n 40 /tmp/output
    fi
}

# Ends with the counts.
counts() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
