#include "archive/compression.h"

#include <absl/strings/numbers.h>

namespace stasis::archive {
namespace {

// From 20 on zstd takes windows that decoders refuse by default, and memory to fill them.
constexpr int kHighestLevel = 19;
constexpr int kUsersHighestLevel = 9;

}  // namespace

Result<std::optional<Compression>> ParseCompression(std::string_view text) {
  if (text == "none") return std::optional<Compression>();
  Compression compression;
  if (text == "zstd") return std::optional(compression);
  constexpr std::string_view kZstd = "zstd:";
  if (text.starts_with(kZstd)) {
    const std::string level(text.substr(kZstd.size()));
    if (absl::SimpleAtoi(level, &compression.level) && compression.level >= 1 &&
        compression.level <= kHighestLevel) {
      return std::optional(compression);
    }
  }
  return InvalidArgument("\"" + std::string(text) +
                         "\" is no compression: it is none, zstd, or zstd:LEVEL with a level from "
                         "1 to " +
                         std::to_string(kHighestLevel));
}

Result<std::optional<Compression>> ParseUsersCompression(std::string_view text) {
  ASSIGN_OR_RETURN(const std::optional<Compression> compression, ParseCompression(text));
  if (!compression || compression->level <= kUsersHighestLevel) return compression;
  return InvalidArgument("\"" + std::string(text) + "\": a level over " +
                         std::to_string(kUsersHighestLevel) +
                         " is the node's administrator's to choose (--compress of stasisd)");
}

std::optional<Compression> CompressionPolicy::For(const std::string& pod_namespace) const {
  const auto own = by_namespace.find(pod_namespace);
  return own == by_namespace.end() ? usual : own->second;
}

Status AddNamespace(std::string_view text, CompressionPolicy& policy) {
  const std::size_t equals = text.find('=');
  if (equals == 0 || equals == std::string_view::npos) {
    return InvalidArgument("\"" + std::string(text) +
                           "\" is not NAMESPACE=COMPRESSION (batch=zstd:3)");
  }
  ASSIGN_OR_RETURN(const std::optional<Compression> compression,
                   ParseCompression(text.substr(equals + 1)));
  policy.by_namespace[std::string(text.substr(0, equals))] = compression;
  return OkStatus();
}

double CompressionReport::ratio() const {
  return stored_bytes == 0 ? 1
                           : static_cast<double>(plain_bytes) / static_cast<double>(stored_bytes);
}

double CompressionReport::cpu_seconds_per_gb() const {
  return plain_bytes == 0 ? 0 : static_cast<double>(cpu.count()) / static_cast<double>(plain_bytes);
}

}  // namespace stasis::archive
