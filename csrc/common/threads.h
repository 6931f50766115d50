// Threads of a CPU kernel: torch's, or none in a forked child.
#pragma once

#include "checks.h"

#include <pthread.h>

namespace flowkern {

// Whether this process was forked after the library was loaded. The threads of OpenMP's pool are not in the child,
// and the first parallel region there would wait for them for ever.
inline bool forked = false;
inline const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Under sanitizers every call makes threads, see tests/gpu/sanitizers/threads.cpp, so that a child has some too.
#if defined(FLOWKERN_SANITIZED)
constexpr bool kThreadsOfItsOwn = true;
#else
constexpr bool kThreadsOfItsOwn = false;
#endif

// body(begin, end) for parts of 0 … count of at least `grain`, on torch's threads.
template <class F> void parallel_for(std::int64_t count, std::int64_t grain, const F& body) {
  if (kThreadsOfItsOwn || !forked) torch::stable::parallel_for(0, count, grain, body);
  else if (count > 0) body(std::int64_t(0), count);
}

}  // namespace flowkern
