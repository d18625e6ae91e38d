// The subcommands of `stasis`, one file each. Every one adds itself to the program; its result is the
// program's exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "archive/archive.h"
#include "engine/base/status.h"

namespace stasis::cli {

inline constexpr int kOk = 0;
inline constexpr int kFailure = 1;
inline constexpr int kUsage = 2;
inline constexpr int kSignalBase = 128;  ///< A shell's exit code for a signal: 128 and its number.

void AddCheckpoint(CLI::App& program, int& exit_code);
void AddRestore(CLI::App& program, int& exit_code);
void AddInspect(CLI::App& program, int& exit_code);
void AddVerify(CLI::App& program, int& exit_code);
void AddImage(CLI::App& program, int& exit_code);
void AddCheck(CLI::App& program, int& exit_code);

/// Prints "stasis: REASON" on standard error and gives kFailure; kOk for an OK status.
int Report(const Status& status);

/// `json`, indented; bytes that are no UTF-8 become U+FFFD.
std::string JsonText(const nlohmann::json& json);

/// `text` without anything that a terminal would act on.
std::string OneLine(const std::string& text);

/// For options whose value must be something.
CLI::Validator NotEmpty();

/// A line that shows how far long work is, on standard error if that is a terminal.
class Progress {
 public:
  explicit Progress(std::string what);
  ~Progress();
  void operator()(std::uint64_t done_bytes, std::uint64_t total_bytes);

 private:
  std::string what_;
  std::chrono::steady_clock::time_point next_;  // not every piece is worth a line
  bool shown_ = false;
  const bool terminal_;
};

/// "1.5 GiB", "512 bytes".
std::string Bytes(std::uint64_t bytes);

/// The archive or folder `path`; what takes long shows how far it is.
Result<std::unique_ptr<archive::Archive>> OpenArchive(const std::string& path);

/// stasis-placeholder beside this program.
std::string PlaceholderProgram();
/// The same of stasis-pages.
std::string PageServerProgram();

}  // namespace stasis::cli
