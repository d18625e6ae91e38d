// How an archive is compressed, and what that came to.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace stasis::archive {

/// zstd at one of its levels.
struct Compression {
  int level = 3;
};

/// "zstd" (level 3), "zstd:LEVEL" with a level from 1 to 19, or "none", which gives an unset one.
/// InvalidArgument: anything else.
Result<std::optional<Compression>> ParseCompression(std::string_view text);

/// How one archive is to be compressed, where its makers said so: unset means that they did not.
using ChosenCompression = std::optional<std::optional<Compression>>;

/// As ParseCompression, of what users of a node say: levels over 9, which take the node's processors for
/// minutes a GB, are its administrator's.
Result<std::optional<Compression>> ParseUsersCompression(std::string_view text);

/// What the archives of an agent are compressed with.
struct CompressionPolicy {
  std::optional<Compression> usual;
  std::map<std::string, std::optional<Compression>> by_namespace;  ///< Of pods; wins over `usual`.

  std::optional<Compression> For(const std::string& pod_namespace) const;
};

/// "NAMESPACE=COMPRESSION", as ParseCompression has it, into `policy`. InvalidArgument: it is not.
Status AddNamespace(std::string_view text, CompressionPolicy& policy);

struct CompressionReport {
  std::uint64_t plain_bytes = 0;
  std::uint64_t stored_bytes = 0;
  std::chrono::nanoseconds cpu{};  ///< Of the threads that compressed.

  /// Plain bytes for each one stored.
  double ratio() const;
  double cpu_seconds_per_gb() const;  ///< For 10^9 plain bytes.
};

}  // namespace stasis::archive
