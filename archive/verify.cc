#include <algorithm>
#include <set>

#include "archive/archive.h"
#include "archive/member_digest.h"
#include "archive/member_name.h"
#include "archive/sha256.h"

namespace stasis::archive {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;

template <class Hash>
Result<std::string> DigestOf(const engine::ImageSource& members, const std::string& name,
                             std::uint64_t size,
                             const std::function<Status(std::uint64_t)>& read_bytes) {
  Hash hash;
  std::vector<std::byte> piece(std::min<std::uint64_t>(size, kPiece));
  for (std::uint64_t offset = 0; offset < size;) {
    const std::span<std::byte> part =
        std::span(piece).first(std::min<std::uint64_t>(size - offset, piece.size()));
    RETURN_IF_ERROR(members.ReadAt(name, offset, part));
    hash.Update(part);
    offset += part.size();
    RETURN_IF_ERROR(read_bytes(part.size()));
  }
  return hash.Finish();
}

/// What is wrong with `wanted`; empty when nothing is.
Result<std::string> Compare(const engine::ImageSource& members, const Manifest::Member& wanted,
                            const std::function<Status(std::uint64_t)>& read_bytes) {
  const std::string shown = Printable(wanted.name);
  const Result<std::uint64_t> size = members.Size(wanted.name);
  if (!size.ok()) return shown + ": missing";
  if (*size != wanted.size) {
    return shown + ": has " + std::to_string(*size) + " bytes instead of " +
           std::to_string(wanted.size);
  }
  const bool is_old = wanted.xxh128.empty();
  ASSIGN_OR_RETURN(const std::string digest,
                   is_old ? DigestOf<Sha256>(members, wanted.name, *size, read_bytes)
                          : DigestOf<MemberDigest>(members, wanted.name, *size, read_bytes));
  if (digest == (is_old ? wanted.sha256 : wanted.xxh128)) return "";
  return shown + ": its content was altered (its digest differs)";
}

}  // namespace

Result<Manifest> ReadManifest(const Archive& archive) {
  ASSIGN_OR_RETURN(const std::string json, archive.Get(kManifestName));
  return ManifestFromJson(json);
}

Result<Verification> Verify(const Archive& archive, const ProgressCall& progress,
                            const std::stop_token& stop) {
  Verification found;
  found.notes = archive.notes();
  std::set<std::string> unlisted;
  for (const std::string& name : archive.members().Names()) {
    ASSIGN_OR_RETURN(const std::uint64_t size, archive.members().Size(name));
    ++found.members;
    found.bytes += size;
    if (name != kManifestName) unlisted.insert(name);
  }
  for (const char* const needed : {"config.dump", "spec.dump"}) {
    if (!archive.Has(needed)) found.problems.push_back(std::string(needed) + ": missing");
  }
  if (!archive.Has(std::string(kImagesPrefix) + "inventory.img")) {
    found.problems.push_back("checkpoint/inventory.img: missing, so no process can be restored");
  }

  const Result<Manifest> manifest = ReadManifest(archive);
  if (manifest.status().code() == StatusCode::kNotFound) {
    found.notes.push_back("no " + std::string(kManifestName) +
                          ": another runtime's archive, of which only the structure was checked");
    return found;
  }
  RETURN_IF_ERROR(manifest.status());
  found.has_manifest = true;
  std::uint64_t done_bytes = 0;
  const auto read_bytes = [&](std::uint64_t bytes) {
    done_bytes += bytes;
    if (progress) progress(done_bytes, found.bytes);
    return stop.stop_requested() ? Cancelled("the verification was cancelled") : OkStatus();
  };
  for (const Manifest::Member& wanted : manifest->members) {
    ASSIGN_OR_RETURN(std::string problem, Compare(archive.members(), wanted, read_bytes));
    if (!problem.empty()) found.problems.push_back(std::move(problem));
    unlisted.erase(wanted.name);
  }
  for (const std::string& name : unlisted) {
    found.problems.push_back(Printable(name) + ": not in the manifest, so it was added later");
  }
  return found;
}

Status CheckUnaltered(const Archive& archive, const ProgressCall& progress,
                      const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const Verification found, Verify(archive, progress, stop));
  if (!found.has_manifest || found.problems.empty()) return OkStatus();
  return DataLoss(archive.name() + " is not as it was written: " + found.problems.front() +
                  "; copy it anew from where it came (`stasis verify` lists all that differs)");
}

}  // namespace stasis::archive
