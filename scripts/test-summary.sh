#!/usr/bin/env bash
# Sums up the output of cargo test: passed, failed, skipped. Fails when a test failed, or when none ran.
set -euo pipefail
log=$1

results() { grep -E '^test result: ' "$log" || true; }

passed=$(results | grep -oE '[0-9]+ passed' | awk '{ total += $1 } END { print total + 0 }')
failed=$(results | grep -oE '[0-9]+ failed' | awk '{ total += $1 } END { print total + 0 }')
ignored=$(results | grep -oE '[0-9]+ ignored' | awk '{ total += $1 } END { print total + 0 }')
skips=$(grep -E '^skipped: ' "$log" || true)
# A test may name several missing things; it is one test all the same.
skipped=$(printf '%s' "$skips" | sed -n 's/^skipped: \([^:]*\):.*/\1/p' | sort -u | wc -l)

if [ "$skipped" -gt 0 ]; then
    printf '\n!!! %s tests were SKIPPED and have shown nothing:\n' "$skipped"
    printf '%s\n' "$skips" | sort -u | sed 's/^/!!!   /'
fi
printf '\n%s passed, %s failed, %s skipped, %s ignored\n' "$((passed - skipped))" "$failed" "$skipped" "$ignored"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
