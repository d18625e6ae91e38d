// How containers are restored.
#pragma once

#include <string>

namespace stasis::cri {

struct RestoreOptions {
  std::string placeholder;  ///< Host path of the program `stasis-placeholder`.
  std::string page_server;  ///< Of `stasis-pages`, for lazy_pages.
  bool lazy_pages = false;  ///< Of pods that do not say it: engine::Options::lazy_pages.
};

}  // namespace stasis::cri
