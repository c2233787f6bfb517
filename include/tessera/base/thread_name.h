// Names of threads, as `top -H` and debuggers show them: what a busy daemon is busy with.
#pragma once

#include <pthread.h>

namespace tessera {

// Of the calling thread. The system keeps the first 15 letters.
inline void name_thread(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace tessera
