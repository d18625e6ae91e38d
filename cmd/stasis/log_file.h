// The log of one dump or restore: --log-file and -v.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/log.h"

namespace spdlog {
class logger;
}

namespace stasis::cli {

/// With --log-file each step is in that file, whatever the result; with -v alone on standard error.
class LogFile {
 public:
  void AddOptions(CLI::App& command);

  /// Begins the log. A relative name is below `folder`, the images' (criu(8)), or the working directory
  /// when that is empty. What was in such a file is gone.
  Status Open(const std::string& folder);

  engine::Log::Hear Hear() const;
  /// What a restore will not bring back, or did not.
  void Warn(const std::vector<std::string>& notes) const;
  /// Ends the log with what came of it.
  void End(const Status& result, const std::string& success) const;

 private:
  std::string path_;
  int verbosity_ = 0;  // 0: not said
  std::shared_ptr<spdlog::logger> logger_;
};

}  // namespace stasis::cli
