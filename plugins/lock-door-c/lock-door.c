// A door's lock: answers the direct methods `lockDoor` and `unlockDoor`.
//
// Does what `../lock-door`, the plugin in Rust, does in its version 1.0.0, and keeps its state in the same form: either
// can take over from the other on a running host. `latch plugin test ../lock-door/tests` holds both to that.
//
// `method_handler.h` is made from the contract by each build: `method_handler_...` are the types of the component
// model, `iothub_device_...` what the host offers, and `exports_...` what this file implements.

#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "method_handler.h"

#define VERSION "1.0.0"

// A name longer than this is a mistake, and the state that keeps it is small.
#define LONGEST_NAME 64

typedef struct {
  bool locked;
  // How often the door has moved.
  uint64_t count;
  bool has_mover;
  // Who moved it last, if they said so.
  json_text moved_by;
} door;

static method_handler_string_t text_of(const char *text) {
  return (method_handler_string_t){(uint8_t *)text, strlen(text)};
}

// Where the door is kept, one JSON document. The host owns this memory: it outlives this instance, a restart of the
// host and a swap to another version of this plugin.
static method_handler_string_t place(void) { return text_of("door"); }

// Nothing of a call stays if its instance ends, so this is the way out where going on makes no sense.
static void must(bool done) {
  if (!done) abort();
}

static bool equals(const json_text *text, const char *other) {
  return text->length == strlen(other) && memcmp(text->bytes, other, text->length) == 0;
}

// Characters, each of which has one byte that does not continue another.
static size_t characters(const json_text *text) {
  size_t count = 0;
  for (size_t i = 0; i < text->length; i++) count += (text->bytes[i] & 0xc0) != 0x80;
  return count;
}

// The members of an object, up to its end: only `by` counts, and of several the last.
static bool take_mover(json_reader *reader, json_text *by, bool *is_name) {
  json_text name = {0};
  bool good = true, only_by = true, first = true;
  *is_name = false;
  while (good && !json_take(reader, "}")) {
    good = (first || json_take(reader, ",")) && json_take_string(reader, &name) && json_take(reader, ":");
    first = false;
    if (!good) break;
    only_by = only_by && equals(&name, "by");
    json_reader before = *reader;
    *is_name = json_take_string(reader, by);
    if (!*is_name) {
      *reader = before;
      good = json_skip(reader);
    }
  }
  *is_name = *is_name && only_by && characters(by) >= 1 && characters(by) <= LONGEST_NAME;
  free(name.bytes);
  return good;
}

// Who asks, from a method's payload: `null` (nobody in particular) or `{"by": "name"}`. Returns what is wrong, if
// anything is.
static const char *mover(const method_handler_string_t *payload, json_text *by, bool *has_mover) {
  json_reader reader = {payload->ptr, payload->ptr + payload->len};
  bool is_null = json_take(&reader, "null"), good = true;
  *has_mover = false;
  if (!is_null) good = json_take(&reader, "{") ? take_mover(&reader, by, has_mover) : json_skip(&reader);
  if (!good || !json_at_end(&reader)) return "the payload is not JSON";
  if (is_null || *has_mover) return NULL;
  return "the payload must be null or {\"by\": \"name\"}, a name of 1 to 64 characters";
}

// The door as earlier calls left it. One that has never moved is unlocked.
static door load(void) {
  door found = {0};
  json_text name = {0};
  method_handler_string_t key = place();
  method_handler_list_u8_t kept;
  if (!iothub_device_state_get(&key, &kept)) return found;
  json_reader reader = {kept.ptr, kept.ptr + kept.len};
  // Only this plugin writes its state.
  must(json_take(&reader, "{"));
  do {
    must(json_take_string(&reader, &name) && json_take(&reader, ":"));
    if (equals(&name, "locked")) {
      found.locked = json_take(&reader, "true");
      must(found.locked || json_take(&reader, "false"));
    } else if (equals(&name, "count")) {
      must(json_take_number(&reader, &found.count));
    } else if (equals(&name, "moved_by")) {
      found.has_mover = json_take_string(&reader, &found.moved_by);
      must(found.has_mover || json_take(&reader, "null"));
    } else {
      must(json_skip(&reader));
    }
  } while (json_take(&reader, ","));
  must(json_take(&reader, "}"));
  free(name.bytes);
  method_handler_list_u8_free(&kept);
  return found;
}

static void put_locked(json_text *text, const door *it) { json_put(text, it->locked ? "true" : "false"); }

static void put_mover(json_text *text, const door *it) {
  if (it->has_mover) {
    json_put_string(text, it->moved_by.bytes, it->moved_by.length);
  } else {
    json_put(text, "null");
  }
}

static void keep(const door *it) {
  json_text text = {0};
  json_put(&text, "{\"locked\":");
  put_locked(&text, it);
  json_put(&text, ",\"count\":");
  json_put_number(&text, it->count);
  json_put(&text, ",\"moved_by\":");
  put_mover(&text, it);
  json_put(&text, "}");
  method_handler_string_t key = place();
  method_handler_list_u8_t value = {text.bytes, text.length};
  iothub_device_state_error_t error;
  must(iothub_device_state_set(&key, &value, &error));
  free(text.bytes);
}

static void report(const door *it) {
  json_text text = {0};
  json_put(&text, "{\"door\":{\"locked\":");
  put_locked(&text, it);
  json_put(&text, "}}");
  iothub_device_twin_json_t patch = {text.bytes, text.length};
  iothub_device_twin_error_t error;
  must(iothub_device_twin_report(&patch, &error));
  free(text.bytes);
}

static void send_event(const door *it) {
  json_text text = {0};
  json_put(&text, "{\"by\":");
  put_mover(&text, it);
  json_put(&text, ",\"count\":");
  json_put_number(&text, it->count);
  json_put(&text, ",\"event\":\"doorMoved\",\"locked\":");
  put_locked(&text, it);
  json_put(&text, "}");
  method_handler_tuple2_string_string_t property = {text_of("event"), text_of("doorMoved")};
  iothub_device_telemetry_message_t message = {
      .body = {text.bytes, text.length},
      .content_type = {true, text_of("application/json")},
      .properties = {&property, 1},
  };
  iothub_device_telemetry_error_t error;
  if (!iothub_device_telemetry_send(&message, &error)) {
    // A full queue is no reason to leave a door open.
    method_handler_string_t words = text_of("the door moved, but its event was not sent");
    iothub_device_log_log(IOTHUB_DEVICE_LOG_LEVEL_WARN, &words);
    iothub_device_telemetry_error_free(&error);
  }
  free(text.bytes);
}

// The caller gets the text and frees it. The members in the order in which the plugin in Rust writes them.
static void answer_door(exports_iothub_plugin_methods_response_t *response, int32_t status, const door *it) {
  json_text text = {0};
  json_put(&text, "{\"count\":");
  json_put_number(&text, it->count);
  json_put(&text, ",\"locked\":");
  put_locked(&text, it);
  json_put(&text, ",\"version\":\"" VERSION "\"}");
  *response = (exports_iothub_plugin_methods_response_t){status, {text.bytes, text.length}};
}

static void answer_error(exports_iothub_plugin_methods_response_t *response, const char *reason) {
  json_text text = {0};
  json_put(&text, "{\"error\":");
  json_put_string(&text, (const uint8_t *)reason, strlen(reason));
  json_put(&text, "}");
  *response = (exports_iothub_plugin_methods_response_t){400, {text.bytes, text.length}};
}

void exports_iothub_plugin_methods_names(method_handler_list_string_t *names) {
  names->ptr = calloc(2, sizeof *names->ptr);
  names->len = 2;
  must(names->ptr != NULL);
  method_handler_string_dup(&names->ptr[0], "lockDoor");
  method_handler_string_dup(&names->ptr[1], "unlockDoor");
}

void exports_iothub_plugin_methods_call(exports_iothub_plugin_methods_request_t *request,
                                        exports_iothub_plugin_methods_response_t *response) {
  bool locked = request->name.len == 8 && memcmp(request->name.ptr, "lockDoor", 8) == 0;
  door moved = {.locked = locked};
  const char *wrong = mover(&request->payload, &moved.moved_by, &moved.has_mover);
  if (wrong != NULL) {
    answer_error(response, wrong);
  } else {
    door before = load();
    moved.count = before.count + 1;
    if (before.locked == locked) {
      answer_door(response, 409, &before);
    } else {
      // The host takes all of it or nothing.
      keep(&moved);
      report(&moved);
      send_event(&moved);
      answer_door(response, 200, &moved);
    }
    free(before.moved_by.bytes);
  }
  free(moved.moved_by.bytes);
  exports_iothub_plugin_methods_request_free(request);
}
