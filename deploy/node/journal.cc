#include "deploy/node/journal.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace stasis::node {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;
constexpr std::array kPhaseNames = {"absent", "installing", "installed", "bypassed",
                                    "uninstalling"};
const std::string kPath = std::string(kJournalFolder) + "/journal.json";

// JSON holds text only, and a file of somebody else may hold any byte.
std::string ToHex(const std::string& bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string hex;
  for (const unsigned char byte : bytes) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (std::size_t at = 0; at + 1 < hex.size(); at += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16));
  }
  return bytes;
}

json ToJson(const MaybeContent& content) {
  if (!content) return nullptr;
  return {{"link", content->is_link},
          {"bytes", ToHex(content->bytes)},
          {"mode", content->mode},
          {"uid", content->uid},
          {"gid", content->gid},
          {"seconds", content->modified.tv_sec},
          {"nanoseconds", content->modified.tv_nsec}};
}

MaybeContent ContentFrom(const json& from) {
  if (from.is_null()) return std::nullopt;
  return Content{.is_link = from.at("link").get<bool>(),
                 .bytes = FromHex(from.at("bytes").get<std::string>()),
                 .mode = from.at("mode").get<mode_t>(),
                 .uid = from.at("uid").get<uid_t>(),
                 .gid = from.at("gid").get<gid_t>(),
                 .modified = {.tv_sec = from.at("seconds").get<time_t>(),
                              .tv_nsec = from.at("nanoseconds").get<long>()}};
}

Journal JournalFrom(const json& from) {
  Journal journal;
  const auto phase = std::find(kPhaseNames.begin(), kPhaseNames.end(), from.at("phase"));
  journal.phase = static_cast<Phase>(phase - kPhaseNames.begin());
  journal.distribution = from.at("distribution");
  journal.service = from.at("service");
  journal.runtime_endpoint = from.at("runtime_endpoint");
  journal.release = from.at("release");
  journal.reason = from.at("reason");
  for (const json& change : from.at("changes")) {
    journal.changes.push_back({.path = change.at("path"),
                               .sends_kubelet = change.at("sends_kubelet"),
                               .syntax = static_cast<Syntax>(change.at("syntax").get<int>()),
                               .before = ContentFrom(change.at("before")),
                               .after = ContentFrom(change.at("after"))});
  }
  journal.made_folders = from.at("made_folders").get<std::vector<std::string>>();
  return journal;
}

json ToJson(const Journal& journal) {
  json changes = json::array();
  for (const Change& change : journal.changes) {
    changes.push_back({{"path", change.path},
                       {"sends_kubelet", change.sends_kubelet},
                       {"syntax", static_cast<int>(change.syntax)},
                       {"before", ToJson(change.before)},
                       {"after", ToJson(change.after)}});
  }
  return {{"version", kVersion},
          {"phase", NameOf(journal.phase)},
          {"distribution", journal.distribution},
          {"service", journal.service},
          {"runtime_endpoint", journal.runtime_endpoint},
          {"release", journal.release},
          {"reason", journal.reason},
          {"changes", std::move(changes)},
          {"made_folders", journal.made_folders}};
}

}  // namespace

std::string NameOf(Phase phase) { return kPhaseNames[static_cast<std::size_t>(phase)]; }

const Change* Journal::Find(const std::string& path) const {
  const auto found = std::find_if(changes.begin(), changes.end(),
                                  [&path](const Change& change) { return change.path == path; });
  return found == changes.end() ? nullptr : &*found;
}

Result<Journal> LoadJournal(const NodeFiles& files) {
  ASSIGN_OR_RETURN(const MaybeContent content, files.Read(kPath));
  if (!content) return Journal();
  try {
    const json parsed = json::parse(content->bytes);
    if (parsed.at("version") != kVersion) {
      return FailedPrecondition(kPath + " is of another version of stasis-node; use that one");
    }
    return JournalFrom(parsed);
  } catch (const std::exception& error) {
    return DataLoss(kPath + " cannot be read (" + error.what() +
                    "); put the kubelet's configuration back by hand and remove it");
  }
}

Status SaveJournal(const NodeFiles& files, const Journal& journal) {
  RETURN_IF_ERROR(files.MakeFolders(kPath));
  // It holds what other files held, some of which only root may read.
  return files.Put(kPath, Content{.bytes = ToJson(journal).dump(1), .mode = 0600});
}

Status RemoveJournal(const NodeFiles& files) { return files.Put(kPath, std::nullopt); }

}  // namespace stasis::node
