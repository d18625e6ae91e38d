// The member "stasis-manifest.json": what an archive of ours must hold, to the byte.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::archive {

/// checkpointctl finds members by substrings of their names, so this one must contain none of
/// "spec.dump", "config.dump", "checkpoint", "pages-", "core-", "files.img" and the like.
inline constexpr std::string_view kManifestName = "stasis-manifest.json";

struct Manifest {
  struct Member {
    std::string name;
    std::uint64_t size = 0;
    std::string xxh128;  ///< Lower-case hexadecimal: see MemberDigest.
    std::string sha256;  ///< In its place in format 1.
  };

  int format_version = 2;
  std::string stasis_version;
  std::string host_arch;    ///< uname -m: "x86_64".
  std::string host_kernel;  ///< uname -r.
  std::chrono::microseconds frozen{};
  std::chrono::microseconds total{};
  std::vector<std::string> notes;  ///< What a restore will not bring back.
  std::vector<Member> members;     ///< All regular members but this one.
};

std::string ManifestToJson(const Manifest& manifest);

/// InvalidArgument: no manifest. Unimplemented: of a format from a newer Stasis.
Result<Manifest> ManifestFromJson(std::string_view json);

}  // namespace stasis::archive
