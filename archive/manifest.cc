#include "archive/manifest.h"

#include <nlohmann/json.hpp>

#include "archive/json_fields.h"

namespace stasis::archive {
namespace {

using nlohmann::json;

constexpr int kNewestFormat = 2;

}  // namespace

std::string ManifestToJson(const Manifest& manifest) {
  std::string text = Dump(json{
      {"formatVersion", manifest.format_version},
      {"stasisVersion", manifest.stasis_version},
      {"hostArch", manifest.host_arch},
      {"hostKernel", manifest.host_kernel},
      {"frozenMicroseconds", manifest.frozen.count()},
      {"totalMicroseconds", manifest.total.count()},
      {"notes", manifest.notes},
      {"members", json::array()},
  });
  // One at a time: thousands of members as one JSON object would be the agent's peak of memory.
  std::string members;
  for (const Manifest::Member& member : manifest.members) {
    members += members.empty() ? "\n    " : ",\n    ";
    members += json{{"name", member.name}, {"size", member.size}, {"xxh128", member.xxh128}}.dump(
        -1, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
  }
  if (members.empty()) return text;
  // No string of JSON has a line break.
  constexpr std::string_view kNone = "\n  \"members\": [";
  return text.insert(text.find(kNone) + kNone.size(), members + "\n  ");
}

Result<Manifest> ManifestFromJson(std::string_view text) {
  ASSIGN_OR_RETURN(const json object, ParseObject(text, kManifestName));
  Manifest manifest;
  manifest.format_version = NumberField<int>(object, "formatVersion");
  if (manifest.format_version > kNewestFormat) {
    return Unimplemented("the archive has format " + std::to_string(manifest.format_version) +
                         ", this Stasis reads up to " + std::to_string(kNewestFormat) +
                         ": use the version that wrote it (" + TextField(object, "stasisVersion") +
                         ")");
  }
  manifest.stasis_version = TextField(object, "stasisVersion");
  manifest.host_arch = TextField(object, "hostArch");
  manifest.host_kernel = TextField(object, "hostKernel");
  manifest.frozen =
      std::chrono::microseconds(NumberField<std::int64_t>(object, "frozenMicroseconds"));
  manifest.total =
      std::chrono::microseconds(NumberField<std::int64_t>(object, "totalMicroseconds"));
  for (const json& note : ArrayField(object, "notes")) {
    if (note.is_string()) manifest.notes.push_back(note.get<std::string>());
  }
  for (const json& member : ArrayField(object, "members")) {
    manifest.members.push_back({.name = TextField(member, "name"),
                                .size = NumberField<std::uint64_t>(member, "size"),
                                .xxh128 = TextField(member, "xxh128"),
                                .sha256 = TextField(member, "sha256")});
  }
  return manifest;
}

}  // namespace stasis::archive
