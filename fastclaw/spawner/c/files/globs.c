/* Patterns of what an archive leaves out. */
#include "files.h"

/* `[...]` against one character: returns where it ends, or NULL where it is no such set. */
static const char *in_set(const char *at, char c, int *is_in) {
    int is_not = at[1] == '!' || at[1] == '^', found = 0;
    const char *one = at + 1 + is_not;
    do {
        if (!*one || *one == '/') return NULL;
        if (one[1] == '-' && one[2] && one[2] != ']') {
            found |= (unsigned char)*one <= (unsigned char)c && (unsigned char)c <= (unsigned char)one[2];
            one += 3;
        } else found |= *one++ == c;
    } while (*one != ']');
    *is_in = found != is_not && c != '/';
    return one + 1;
}

/* What the pattern's next piece makes of the text's next character: the rest of the pattern, or NULL where it does not fit. */
static const char *step_over(const char *pattern, char c) {
    int is_in;
    const char *rest;
    if (!*pattern || !c) return NULL;
    if (*pattern == '?') return c == '/' ? NULL : pattern + 1;
    if (*pattern == '[' && (rest = in_set(pattern, c, &is_in))) return is_in ? rest : NULL;
    if (*pattern == '\\' && pattern[1]) pattern++;
    return *pattern == c ? pattern + 1 : NULL;
}

/* `*` is any number of characters but `/`, and two of them of any. Two places to go back to are enough: what a later star takes needs no
 * other choice of an earlier one of its kind. */
int matches(const char *pattern, const char *text) {
    const char *back[2] = {NULL, NULL}, *from[2] = {NULL, NULL};
    for (;;) {
        if (*pattern == '*') {
            int any = pattern[1] == '*';
            pattern += 1 + any;
            if (any && *pattern == '/') pattern++; /* none of the directories, too */
            if (any) back[0] = NULL;
            back[any] = pattern;
            from[any] = text;
            continue;
        }
        const char *rest = step_over(pattern, *text);
        if (rest) { pattern = rest; text++; continue; }
        if (!*pattern && !*text) return 1;
        if (back[0] && *from[0] && *from[0] != '/') { pattern = back[0]; text = ++from[0]; continue; }
        if (!back[1] || !*from[1]) return 0;
        back[0] = NULL;
        pattern = back[1];
        text = ++from[1];
    }
}
