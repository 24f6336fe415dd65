/* Texts and numbers. No system call is in here. */
#include "files.h"

int compare(const char *one, const char *other) {
    while (*one && *one == *other) { one++; other++; }
    return (unsigned char)*one - (unsigned char)*other;
}

int same(const char *one, const char *other) { return !compare(one, other); }

char *put_u64(char *at, u64 number) {
    char digits[20];
    int n = 0;
    do digits[n++] = (char)('0' + number % 10); while (number /= 10);
    while (n) *at++ = digits[--n];
    return at;
}

int parse_u64(const char *text, u64 *number) {
    *number = 0;
    if (!*text) return 0;
    for (; *text; text++) {
        u64 digit = (u64)(*text - '0');
        if (digit > 9 || *number > (~0ull - digit) / 10) return 0;
        *number = *number * 10 + digit;
    }
    return 1;
}
