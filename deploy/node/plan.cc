#include "deploy/node/plan.h"

#include <fcntl.h>

#include <algorithm>
#include <filesystem>

#include "engine/base/io.h"

namespace stasis::node {
namespace {

const std::string kUnits = "/etc/systemd/system/";
const std::string kPackagedUnits = "/usr/lib/systemd/system/";
constexpr const char* kDefaultConfig =
    "# Options of stasisd, one a line, as name = \"value\"; see stasisd --help.\n";

std::string Replaced(std::string text, const std::string& what, const std::string& by) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at)) {
    text.replace(at, what.size(), by);
  }
  return text;
}

void NoteFolders(const NodeFiles& files, const std::string& path, Journal& plan) {
  for (const std::string& folder : files.MissingFolders(path)) {
    const auto end = plan.made_folders.end();
    if (std::find(plan.made_folders.begin(), end, folder) == end) {
      plan.made_folders.push_back(folder);
    }
  }
}

// Adds to the plan what is to lie at `path`, with what lay there before we ever came.
Status Add(const NodeFiles& files, const Journal& old, Change change, Journal& plan) {
  ASSIGN_OR_RETURN(const MaybeContent now, files.Read(change.path, change.FollowsLinks()));
  change.before = now;
  if (const Change* known = old.Find(change.path)) {
    change.before = known->before;
    const bool as_known = Same(now, known->after) || Same(now, known->before);
    if (!as_known && now && change.syntax != Syntax::kFile) {
      ASSIGN_OR_RETURN(change.before, WithoutUs(*known, *now));
    }
  }
  NoteFolders(files, change.path, plan);
  plan.changes.push_back(std::move(change));
  return OkStatus();
}

Status AddFile(const NodeFiles& files, const Journal& old, const std::string& path,
               std::string bytes, Journal& plan) {
  return Add(files, old, {.path = path, .after = Content{.bytes = std::move(bytes)}}, plan);
}

Status AddUnits(const NodeFiles& files, const InstallRequest& request, const Journal& old,
                Journal& plan) {
  for (const std::string name : {"stasisd.socket", "stasisd.service", "stasisd-bypass.service"}) {
    ASSIGN_OR_RETURN(const std::string text,
                     ReadFileAt(AT_FDCWD, request.release + "/systemd/" + name));
    RETURN_IF_ERROR(AddFile(files, old, kUnits + name,
                            Replaced(text, "/usr/bin/", ProgramsOf(plan.release) + "/"), plan));
  }
  return AddFile(files, old, "/etc/stasis/stasisd.toml",
                 request.config.empty() ? kDefaultConfig : request.config, plan);
}

Status AddAgent(const NodeFiles& files, const InstallRequest& request, const Journal& old,
                Journal& plan) {
  const bool packaged = plan.release.empty();
  if (packaged && !files.Exists(kPackagedUnits + "stasisd.socket")) {
    return NotFound("there is no " + kPackagedUnits +
                    "stasisd.socket; install the package stasis, or "
                    "name a release with --release");
  }
  if (!packaged) {
    NoteFolders(files, std::string(kReleases) + "/" + plan.release, plan);
    RETURN_IF_ERROR(AddUnits(files, request, old, plan));
  }
  RETURN_IF_ERROR(AddFile(
      files, old, "/etc/stasis/node.env",
      "# Written by stasis-node.\nSTASIS_RUNTIME_ENDPOINT=" + plan.runtime_endpoint + "\n", plan));
  // systemd makes the socket at every boot, and before the kubelet starts, whether or not the agent runs.
  RETURN_IF_ERROR(AddFile(
      files, old, kUnits + plan.service + ".service.d/10-stasis.conf",
      "# Written by stasis-node.\n[Unit]\nWants=stasisd.socket\nAfter=stasisd.socket\n", plan));
  const Content link{.is_link = true,
                     .bytes = (packaged ? kPackagedUnits : kUnits) + "stasisd.socket"};
  return Add(files, old, {.path = kUnits + "sockets.target.wants/stasisd.socket", .after = link},
             plan);
}

Status AddSwitch(const NodeFiles& files, const Switch& to_stasis, const Journal& old,
                 Journal& plan) {
  Change change{.path = to_stasis.path, .sends_kubelet = true, .syntax = to_stasis.syntax};
  ASSIGN_OR_RETURN(const MaybeContent now, files.Read(change.path));
  if (change.syntax == Syntax::kFile) {
    change.after = Content{.bytes = to_stasis.whole};
  } else {
    if (!now) return NotFound(change.path + " is gone");
    change.after = now;
    change.after->modified = {};
    ASSIGN_OR_RETURN(change.after->bytes, WithEndpoint(now->bytes, change.syntax, kStasisEndpoint));
  }
  return Add(files, old, std::move(change), plan);
}

}  // namespace

std::string ReleaseName(const std::string& from) {
  return std::filesystem::path(from).filename().string();
}

std::string ProgramsOf(const std::string& release) {
  return release.empty() ? "/usr/bin" : std::string(kReleases) + "/" + release + "/bin";
}

Result<MaybeContent> WithoutUs(const Change& change, const Content& now) {
  if (change.syntax == Syntax::kFile) return change.before;
  ASSIGN_OR_RETURN(const auto value, EndpointIn(now.bytes, change.syntax));
  if (value != kStasisEndpoint) return MaybeContent(now);
  std::optional<std::string> original;
  if (change.before) {
    ASSIGN_OR_RETURN(original, EndpointIn(change.before->bytes, change.syntax));
  }
  Content without = now;
  ASSIGN_OR_RETURN(without.bytes, WithEndpoint(now.bytes, change.syntax, original));
  return MaybeContent(std::move(without));
}

Result<Journal> MakePlan(const NodeFiles& files, const InstallRequest& request,
                         const Journal& old) {
  ASSIGN_OR_RETURN(const Kubelet kubelet, FindKubelet(files, request.hints));
  Journal plan{.phase = Phase::kInstalling,
               .distribution = kubelet.distribution,
               .service = kubelet.service,
               .runtime_endpoint = kubelet.runtime_endpoint,
               .release = ReleaseName(request.release),
               .made_folders = old.made_folders};
  if (plan.runtime_endpoint == kStasisEndpoint) {
    if (old.phase == Phase::kAbsent) {
      return FailedPrecondition(
          kubelet.to_stasis.path + " already names " + kStasisEndpoint +
          ", and nothing tells what it named before; put the runtime's socket "
          "there first");
    }
    plan.runtime_endpoint = old.runtime_endpoint;
  }
  RETURN_IF_ERROR(AddAgent(files, request, old, plan));
  RETURN_IF_ERROR(AddSwitch(files, kubelet.to_stasis, old, plan));
  return plan;
}

}  // namespace stasis::node
