// What systemd is told of the agent: that it lives, and what it lacks.
#pragma once

#include <chrono>
#include <string>
#include <thread>

namespace stasis {

/// sd_notify(3): one assignment, such as "STATUS=..." or "WATCHDOG=1". Nothing where no systemd listens.
void Notify(const std::string& assignment);

/// The endpoint that is served: systemd's socket, where there is one, or `listen`. To be asked before the
/// socket is taken over.
std::string ServedEndpoint(const std::string& listen);

struct Watched {
  std::string served;   ///< The endpoint that the kubelet talks to.
  std::string runtime;  ///< The one behind it.
};

/// Tells systemd that the agent lives, four times in the time that WATCHDOG_USEC gives it, as long as it passes
/// calls on: sd_watchdog_enabled(3). A thread that does nothing where systemd does not ask for it.
std::jthread StartWatchdog(Watched watched);

}  // namespace stasis
