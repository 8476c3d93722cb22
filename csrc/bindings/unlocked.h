// Computing without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include "core/os.h"

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace rwkv::bindings {

/// Gives the GIL to other threads while this lives; the holder's thread uses no Python meanwhile.
///
/// As pybind11's gil_scoped_release, but for a daemon thread that comes back when the interpreter has ended:
/// Python up to 3.13 ends such a thread, and glibc unwinds its stack for that, which no destructor may let
/// through: the process would be aborted. Here the thread stays until the process has ended, as from 3.14 on.
class Unlocked {
  public:
    Unlocked() : thread_(PyEval_SaveThread()) {}
    ~Unlocked() {
#ifdef __GLIBCXX__
        try {
            PyEval_RestoreThread(thread_);
        } catch (const abi::__forced_unwind&) {
            os::sleep_forever();
        }
#else
        PyEval_RestoreThread(thread_);
#endif
    }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

  private:
    PyThreadState* thread_;
};

} // namespace rwkv::bindings
