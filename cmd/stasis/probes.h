// What this kernel and this user can do, found out by trying.
#pragma once

#include <string>
#include <vector>

namespace stasis::cli {

struct Probe {
  std::string name;
  bool works = false;
  bool required = true;     ///< Without it nothing can be checkpointed or restored here.
  std::string detail;       ///< What was found: a version, an error.
  std::string consequence;  ///< What follows when it does not work.
};

/// Tries everything once. Nothing is changed; a child that is traced for a moment is ended.
std::vector<Probe> RunProbes();

}  // namespace stasis::cli
