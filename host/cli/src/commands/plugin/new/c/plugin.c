// Answers the direct method `hello`, and counts how often it was asked.
//
// `method_handler.h` is made from the contract by each build: `method_handler_...` are the types of the component
// model, `iothub_device_...` what the host offers, and `exports_...` what this file implements.

#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "method_handler.h"

static method_handler_string_t text_of(const char *text) {
  return (method_handler_string_t){(uint8_t *)text, strlen(text)};
}

// The host keeps all that a call changes, or nothing if its instance ends like this.
static void must(bool done) {
  if (!done) abort();
}

// Reads `{"name": "..."}` and nothing else.
static bool take_name(const method_handler_string_t *payload, json_text *name) {
  json_reader reader = {payload->ptr, payload->ptr + payload->len};
  json_text member = {0};
  bool good = json_take(&reader, "{") && json_take_string(&reader, &member) && json_take(&reader, ":");
  good = good && member.length == 4 && memcmp(member.bytes, "name", 4) == 0;
  good = good && json_take_string(&reader, name) && json_take(&reader, "}") && json_at_end(&reader);
  free(member.bytes);
  return good;
}

// Globals are no place to keep it: an instance may be dropped between any two calls.
static uint64_t kept(void) {
  method_handler_string_t key = text_of("count");
  method_handler_list_u8_t bytes;
  uint64_t count = 0;
  if (!iothub_device_state_get(&key, &bytes)) return count;
  json_reader reader = {bytes.ptr, bytes.ptr + bytes.len};
  must(json_take_number(&reader, &count));
  method_handler_list_u8_free(&bytes);
  return count;
}

static void keep(uint64_t count) {
  json_text text = {0};
  json_put_number(&text, count);
  method_handler_string_t key = text_of("count");
  method_handler_list_u8_t value = {text.bytes, text.length};
  iothub_device_state_error_t error;
  must(iothub_device_state_set(&key, &value, &error));
  free(text.bytes);
}

static void report(uint64_t count) {
  json_text text = {0};
  json_put(&text, "{\"{{name}}\":{\"count\":");
  json_put_number(&text, count);
  json_put(&text, "}}");
  iothub_device_twin_json_t patch = {text.bytes, text.length};
  iothub_device_twin_error_t error;
  must(iothub_device_twin_report(&patch, &error));
  free(text.bytes);
}

void exports_iothub_plugin_methods_names(method_handler_list_string_t *names) {
  names->ptr = calloc(1, sizeof *names->ptr);
  names->len = 1;
  must(names->ptr != NULL);
  method_handler_string_dup(&names->ptr[0], "hello");
}

void exports_iothub_plugin_methods_call(exports_iothub_plugin_methods_request_t *request,
                                        exports_iothub_plugin_methods_response_t *response) {
  json_text name = {0}, greeting = {0}, answer = {0};
  if (take_name(&request->payload, &name)) {
    uint64_t count = kept() + 1;
    keep(count);
    report(count);
    json_put(&greeting, "hello, ");
    json_put_bytes(&greeting, name.bytes, name.length);
    json_put(&answer, "{\"text\":");
    json_put_string(&answer, greeting.bytes, greeting.length);
    json_put(&answer, ",\"count\":");
    json_put_number(&answer, count);
    json_put(&answer, "}");
    response->status = 200;
  } else {
    json_put(&answer, "{\"error\":\"the payload must be {\\\"name\\\": \\\"…\\\"}\"}");
    response->status = 400;
  }
  // Whoever called frees the text.
  response->payload = (method_handler_string_t){answer.bytes, answer.length};
  free(name.bytes);
  free(greeting.bytes);
  exports_iothub_plugin_methods_request_free(request);
}
