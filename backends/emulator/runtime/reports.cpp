// Findings: each pair of operations is reported once for each kind of mistake.
#include "state.h"

namespace emu {

struct Finding {
  const char* kind;
  int op, other;
  const char* message;
};

static std::set<std::tuple<std::string, int, int>> reported;
static std::vector<Finding> findings;
static std::vector<std::string*> messages;

constexpr u32 PATIENCE = 1 << 21;

static void add(const char* kind, int op, int other, const char* format, va_list arguments) {
  if (!reported.insert({kind, op, other}).second) return;
  run.patience = PATIENCE;
  char text[512];
  int n = current ? snprintf(text, sizeof text, "thread %d of block %lld: ", number_of(*current),
                             (long long)here().program) : 0;
  vsnprintf(text + n, sizeof text - n, format, arguments);
  messages.push_back(new std::string(text));
  findings.push_back({kind, op, other, messages.back()->c_str()});
}

static void report(const char* kind, int op, int other, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, op, other, format, arguments);
  va_end(arguments);
}

[[noreturn]] static void fail(const char* kind, int op, int other, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  add(kind, op, other, format, arguments);
  va_end(arguments);
  abandon();
}

static void clear_findings() {
  for (std::string* m : messages) delete m;
  messages.clear();
  findings.clear();
  reported.clear();
}

}  // namespace emu
