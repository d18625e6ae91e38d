#include "kubelet-api/client_threads.h"

#include <cpprest/http_client.h>  // first: threadpool.h alone does not compile with g++ 12
#include <pplx/threadpool.h>

#include <mutex>

namespace stasis::kubelet_api {

void StartClientThreads() {
  constexpr int kThreads = 4;  // 40 unless said
  static std::once_flag once;
  std::call_once(once, [] { crossplat::threadpool::initialize_with_threads(kThreads); });
}

}  // namespace stasis::kubelet_api
