// Errors at the doors (files, arguments) are exceptions with a message for a person; inside, code asserts.
#pragma once

#include <cassert>
#include <stdexcept>
#include <string>

namespace rwkv {

/// What went wrong, so that Python can raise the matching class and exit code.
/// kThreads is a kDevice that asking for fewer threads helps against, kMemory one that a smaller model does.
enum class Fault { kFormat, kArgument, kDevice, kThreads, kMemory };

class Error : public std::runtime_error {
  public:
    Error(Fault fault, const std::string& what) : std::runtime_error(what), fault_(fault) {}
    Fault fault() const { return fault_; }

  private:
    Fault fault_;
};

/// Raised when the caller's poll asked a long prompt to stop. The state is as it was before the call.
class Cancelled : public std::runtime_error {
  public:
    Cancelled() : std::runtime_error("cancelled") {}
};

inline void require(bool ok, Fault fault, const std::string& what) {
    if (!ok)
        throw Error(fault, what);
}

} // namespace rwkv
