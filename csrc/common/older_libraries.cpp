// What gcc's headers call and older libraries lack (glibc before 2.34, libstdc++ before 3.4.29): linked into
// libraries that are to run with those, as gcc's own builds for older systems do.
#include <new>
#include <sstream>

extern "C" {

char __libc_single_threaded = 0;  // no: reference counts stay atomic

extern void* __dso_handle;
int __register_atfork(void (*)(), void (*)(), void (*)(), void*);
int pthread_atfork(void (*prepare)(), void (*parent)(), void (*child)()) {
  return __register_atfork(prepare, parent, child, __dso_handle);
}

}  // extern "C"

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

template basic_ostringstream<char>::basic_ostringstream();
template basic_stringstream<char>::basic_stringstream();
template string basic_stringbuf<char>::str() const&;
template string basic_stringbuf<char>::str() &&;

}  // namespace std
