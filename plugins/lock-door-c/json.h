// Reading and writing a little JSON, as much as a small plugin needs.
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// UTF-8 text that grows. Begin with zeros; the owner frees `bytes`.
typedef struct {
  uint8_t *bytes;
  size_t length, capacity;
} json_text;

void json_put(json_text *text, const char *raw);
void json_put_bytes(json_text *text, const void *raw, size_t length);
void json_put_number(json_text *text, uint64_t number);
// In quotes, and escaped where JSON needs it.
void json_put_string(json_text *text, const uint8_t *bytes, size_t length);

// A place in a document. Every reader below skips white space first, and returns false where something else stands.
typedef struct {
  const uint8_t *at, *end;
} json_reader;

// Reads `token` exactly, such as `{`, `,` or `null`.
bool json_take(json_reader *reader, const char *token);
// Reads a string into `into`, in place of what was there.
bool json_take_string(json_reader *reader, json_text *into);
bool json_take_number(json_reader *reader, uint64_t *into);
// Reads any value and forgets it.
bool json_skip(json_reader *reader);
bool json_at_end(json_reader *reader);

#endif
