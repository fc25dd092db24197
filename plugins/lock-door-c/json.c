#include "json.h"

#include <stdlib.h>
#include <string.h>

// As deep as the plugin in Rust reads; a stack is small.
#define DEEPEST 128

void json_put_bytes(json_text *text, const void *bytes, size_t length) {
  if (text->length + length > text->capacity) {
    text->capacity = 2 * (text->length + length);
    text->bytes = realloc(text->bytes, text->capacity);
    // The host ends the instance, and nothing of the call is left.
    if (text->bytes == NULL) abort();
  }
  if (length > 0) memcpy(text->bytes + text->length, bytes, length);
  text->length += length;
}

void json_put(json_text *text, const char *raw) { json_put_bytes(text, raw, strlen(raw)); }

void json_put_number(json_text *text, uint64_t number) {
  char digits[20];
  size_t first = sizeof digits;
  do {
    digits[--first] = (char)('0' + number % 10);
    number /= 10;
  } while (number > 0);
  json_put_bytes(text, digits + first, sizeof digits - first);
}

void json_put_string(json_text *text, const uint8_t *bytes, size_t length) {
  static const char HEX[] = "0123456789abcdef";
  static const char SHORT[][2] = {{'"', '"'},  {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'},
                                  {'\n', 'n'}, {'\r', 'r'},  {'\t', 't'}};
  json_put(text, "\"");
  for (size_t i = 0; i < length; i++) {
    char escape[6] = {'\\', 'u', '0', '0', HEX[bytes[i] >> 4], HEX[bytes[i] & 15]};
    size_t size = bytes[i] < 0x20 ? 6 : 0;
    for (size_t j = 0; j < sizeof SHORT / sizeof SHORT[0]; j++) {
      if (bytes[i] == (uint8_t)SHORT[j][0]) {
        escape[1] = SHORT[j][1];
        size = 2;
      }
    }
    if (size > 0) {
      json_put_bytes(text, escape, size);
    } else {
      json_put_bytes(text, bytes + i, 1);
    }
  }
  json_put(text, "\"");
}

static void skip_space(json_reader *reader) {
  while (reader->at < reader->end && memchr(" \t\n\r", *reader->at, 4) != NULL) reader->at++;
}

bool json_take(json_reader *reader, const char *token) {
  skip_space(reader);
  size_t length = strlen(token);
  if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, token, length) != 0) return false;
  reader->at += length;
  return true;
}

bool json_at_end(json_reader *reader) {
  skip_space(reader);
  return reader->at == reader->end;
}

static bool take_four_hex_digits(json_reader *reader, uint32_t *into) {
  *into = 0;
  for (int i = 0; i < 4; i++, reader->at++) {
    if (reader->at == reader->end) return false;
    uint8_t digit = *reader->at;
    if (digit >= '0' && digit <= '9') {
      *into = *into << 4 | (uint32_t)(digit - '0');
    } else if ((digit | 0x20) >= 'a' && (digit | 0x20) <= 'f') {
      *into = *into << 4 | (uint32_t)((digit | 0x20) - 'a' + 10);
    } else {
      return false;
    }
  }
  return true;
}

static void put_character(json_text *text, uint32_t code) {
  uint8_t bytes[4];
  size_t size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  static const uint8_t FIRST[] = {0, 0x00, 0xc0, 0xe0, 0xf0};
  for (size_t i = size; i-- > 1; code >>= 6) bytes[i] = (uint8_t)(0x80 | (code & 0x3f));
  bytes[0] = (uint8_t)(FIRST[size] | code);
  json_put_bytes(text, bytes, size);
}

// What follows `\u`: one character, written as one code or as a pair of surrogates.
static bool take_code(json_reader *reader, json_text *into) {
  uint32_t code, low;
  if (!take_four_hex_digits(reader, &code)) return false;
  if (code >= 0xd800 && code < 0xe000) {
    bool has_more = reader->end - reader->at >= 2 && reader->at[0] == '\\' && reader->at[1] == 'u';
    if (code >= 0xdc00 || !has_more) return false;
    reader->at += 2;
    if (!take_four_hex_digits(reader, &low) || low < 0xdc00 || low >= 0xe000) return false;
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  put_character(into, code);
  return true;
}

bool json_take_string(json_reader *reader, json_text *into) {
  static const char FROM[] = "\"\\/bfnrt", TO[] = "\"\\/\b\f\n\r\t";
  if (!json_take(reader, "\"")) return false;
  into->length = 0;
  while (reader->at < reader->end) {
    uint8_t byte = *reader->at++;
    if (byte == '"') return true;
    if (byte < 0x20) return false;
    if (byte != '\\') {
      json_put_bytes(into, &byte, 1);
      continue;
    }
    if (reader->at == reader->end) return false;
    byte = *reader->at++;
    const char *known = memchr(FROM, byte, sizeof FROM - 1);
    if (known != NULL) {
      json_put_bytes(into, &TO[known - FROM], 1);
    } else if (byte != 'u' || !take_code(reader, into)) {
      return false;
    }
  }
  return false;
}

static size_t skip_digits(json_reader *reader) {
  const uint8_t *first = reader->at;
  while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9') reader->at++;
  return (size_t)(reader->at - first);
}

bool json_take_number(json_reader *reader, uint64_t *into) {
  skip_space(reader);
  const uint8_t *first = reader->at;
  size_t digits = skip_digits(reader);
  *into = 0;
  for (size_t i = 0; i < digits; i++) *into = *into * 10 + (uint64_t)(first[i] - '0');
  return digits > 0;
}

static bool next_is(const json_reader *reader, const char *characters) {
  return reader->at < reader->end && memchr(characters, *reader->at, strlen(characters)) != NULL;
}

static bool skip_number(json_reader *reader) {
  if (next_is(reader, "-")) reader->at++;
  bool leading_zero = next_is(reader, "0");
  size_t digits = skip_digits(reader);
  if (digits == 0 || (leading_zero && digits > 1)) return false;
  if (next_is(reader, ".")) {
    reader->at++;
    if (skip_digits(reader) == 0) return false;
  }
  if (next_is(reader, "eE")) {
    reader->at++;
    if (next_is(reader, "+-")) reader->at++;
    if (skip_digits(reader) == 0) return false;
  }
  return true;
}

static bool skip(json_reader *reader, int depth);

static bool skip_string(json_reader *reader) {
  json_text text = {0};
  bool good = json_take_string(reader, &text);
  free(text.bytes);
  return good;
}

static bool skip_members(json_reader *reader, bool named, const char *close, int depth) {
  if (json_take(reader, close)) return true;
  do {
    if (named && !(skip_string(reader) && json_take(reader, ":"))) return false;
    if (!skip(reader, depth + 1)) return false;
  } while (json_take(reader, ","));
  return json_take(reader, close);
}

static bool skip(json_reader *reader, int depth) {
  if (depth == DEEPEST) return false;
  if (json_take(reader, "{")) return skip_members(reader, true, "}", depth);
  if (json_take(reader, "[")) return skip_members(reader, false, "]", depth);
  if (json_take(reader, "null") || json_take(reader, "true") || json_take(reader, "false")) return true;
  return next_is(reader, "\"") ? skip_string(reader) : skip_number(reader);
}

bool json_skip(json_reader *reader) { return skip(reader, 0); }
