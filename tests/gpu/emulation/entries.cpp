// What library.py asks of the emulation itself.
#include <string>

#include "scheduler.h"
#include "symbols.h"

namespace {

template <class Names> const char* lines(const Names& names) {
  static std::string text;
  text.clear();
  for (const std::string& name : names) text += name + "\n";
  return text.c_str();
}

}  // namespace

extern "C" {
const char* launched_kernels() { return lines(emulation::launched); }
const char* all_functions() { return lines(emulation::function_names()); }
void settings(int schedule, unsigned seed, unsigned most_blocks) {
  emulation::settings = {schedule, seed, most_blocks};
}
}
