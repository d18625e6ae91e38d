// The threads of cpprestsdk's that wait for answers of the API server.
#pragma once

namespace stasis::kubelet_api {

/// Before the first question to an API server; later calls do nothing. May throw what cpprestsdk throws.
void StartClientThreads();

}  // namespace stasis::kubelet_api
