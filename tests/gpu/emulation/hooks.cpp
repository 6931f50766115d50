// What the compiler calls from kernels that are built with -fsanitize=thread,undefined: before every
// load and store, and where it finds undefined behaviour. The sanitizers' own libraries stay out.
#include <cstddef>

#include "memory.h"
#include "scheduler.h"

using emulation::Access;

namespace {

// The beginning of what the compiler says about a piece of code.
struct Place {
  const char* file;
  unsigned line, column;
};

[[noreturn]] void undefined(const char* what, const Place& at) {
  const emulation::Unwatched unwatched;
  const std::string file = at.file;
  const std::string line = file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line);
  emulation::fault("undefined behaviour: " + std::string(what) + " (" + line + ")");
}

}  // namespace

#define WATCH(p, bytes, how) emulation::access(p, bytes, Access::how, __builtin_return_address(0))
#define FOR_SIZE(n) \
  void __tsan_read##n(void* p) { WATCH(p, n, kRead); } \
  void __tsan_write##n(void* p) { WATCH(p, n, kWrite); } \
  void __tsan_unaligned_read##n(void* p) { WATCH(p, n, kRead); } \
  void __tsan_unaligned_write##n(void* p) { WATCH(p, n, kWrite); } \
  void __tsan_volatile_read##n(void* p) { WATCH(p, n, kRead); } \
  void __tsan_volatile_write##n(void* p) { WATCH(p, n, kWrite); }

#define FOR_KIND(kind, what) \
  void __ubsan_handle_##kind(const Place* at) { undefined(what, *at); }

extern "C" {

FOR_SIZE(1)
FOR_SIZE(2)
FOR_SIZE(4)
FOR_SIZE(8)
FOR_SIZE(16)
void __tsan_read_range(void* p, std::size_t bytes) { WATCH(p, bytes, kRead); }
void __tsan_write_range(void* p, std::size_t bytes) { WATCH(p, bytes, kWrite); }
void __tsan_init() {}

FOR_KIND(add_overflow, "signed overflow of +")
FOR_KIND(sub_overflow, "signed overflow of -")
FOR_KIND(mul_overflow, "signed overflow of *")
FOR_KIND(negate_overflow, "signed overflow of a negation")
FOR_KIND(divrem_overflow, "division by zero, or one that overflows")
FOR_KIND(shift_out_of_bounds, "a shift by too many bits")
FOR_KIND(out_of_bounds, "an index outside of its array")
FOR_KIND(pointer_overflow, "a pointer outside of any object")
FOR_KIND(type_mismatch_v1, "a null or misaligned pointer, or one to an object that is too small")
FOR_KIND(load_invalid_value, "a bool or an enum with another value")
FOR_KIND(float_cast_overflow, "a number that the type it is converted to cannot hold")
FOR_KIND(vla_bound_not_positive, "an array without elements")
FOR_KIND(nonnull_arg, "a null argument")
FOR_KIND(nonnull_return_v1, "a null result")
FOR_KIND(invalid_builtin, "an argument outside of a function's domain")
FOR_KIND(builtin_unreachable, "a place that cannot be reached")
FOR_KIND(missing_return, "the end of a function that has to return a value")

}  // extern "C"
