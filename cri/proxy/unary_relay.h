// One unary call passed between client and runtime: what the relay does in general, in fewer steps.
#pragma once

#include <memory>
#include <string_view>

#include "cri/proxy/relay.h"

namespace stasis::cri {

/// Is `method` one of CRI's that take one message and answer one? Then each side of it is one batch of
/// operations, which takes less than half the time. Methods that are not known go the general way.
bool IsUnary(std::string_view method);

/// As StartRelay, for a unary method.
void StartUnaryRelay(std::unique_ptr<ClientEnd> client, const Forwarding& to);

}  // namespace stasis::cri
