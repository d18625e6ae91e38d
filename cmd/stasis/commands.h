// The subcommands of `stasis`, one file each. Every one adds itself to the program; its result is the
// program's exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "engine/base/status.h"

namespace stasis::cli {

inline constexpr int kOk = 0;
inline constexpr int kFailure = 1;
inline constexpr int kUsage = 2;

void AddCheckpoint(CLI::App& program, int& exit_code);
void AddRestore(CLI::App& program, int& exit_code);
void AddInspect(CLI::App& program, int& exit_code);
void AddVerify(CLI::App& program, int& exit_code);
void AddImage(CLI::App& program, int& exit_code);
void AddCheck(CLI::App& program, int& exit_code);

/// Prints "stasis: REASON" on standard error and gives kFailure; kOk for an OK status.
int Report(const Status& status);

/// A line that shows how far long work is, on standard error if that is a terminal.
class Progress {
 public:
  explicit Progress(std::string what);
  ~Progress();
  void operator()(std::uint64_t done_bytes, std::uint64_t total_bytes);

 private:
  std::string what_;
  bool shown_ = false;
  const bool terminal_;
};

/// "1.5 GiB", "512 bytes".
std::string Bytes(std::uint64_t bytes);

/// stasis-placeholder beside this program.
std::string PlaceholderProgram();

}  // namespace stasis::cli
