#!/usr/bin/env bash
# Sums up the output of cargo test: passed, failed, skipped. Fails when a test failed, or when none ran.
set -euo pipefail
log=$1

# total WORD: the numbers before that word in the result lines, added up.
total() {
    awk -v word="$1" '/^test result: / { for (i = 2; i <= NF; i++) if ($i ~ "^" word) sum += $(i - 1) } END { print sum + 0 }' "$log"
}

passed=$(total passed)
failed=$(total failed)
ignored=$(total ignored)
skips=$(grep -E '^skipped: ' "$log" || true)
# A test may name several missing things; it is one test all the same.
skipped=$(printf '%s' "$skips" | sed -n 's/^skipped: \([^:]*\):.*/\1/p' | sort -u | wc -l)

if [ "$skipped" -gt 0 ]; then
    printf '\n!!! %s tests were SKIPPED and have shown nothing:\n' "$skipped"
    printf '%s\n' "$skips" | sort -u | sed 's/^/!!!   /'
fi
# A test binary that was killed or crashed has no result line of its own.
started=$(grep -cE '^ *(Running|Doc-tests) ' "$log" || true)
ended=$(grep -c '^test result: ' "$log" || true)
if [ "$ended" -lt "$started" ]; then
    printf '\n!!! %s of %s test binaries ended without a result (killed, or crashed): see "Caused by" above\n' \
        "$((started - ended))" "$started"
    failed=$((failed + started - ended))
fi
printf '\n%s passed, %s failed, %s skipped, %s ignored\n' "$((passed - skipped))" "$failed" "$skipped" "$ignored"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
