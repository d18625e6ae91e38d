// Where each distribution keeps the kubelet's runtime endpoint.
//
//   kubelet   the flag wins over the configuration file (kubelet documentation, "Set Kubelet Parameters Via
//             A Configuration File"); kubeadm writes /var/lib/kubelet/kubeadm-flags.env and config.yaml,
//             the administrator's flags are in /etc/default/kubelet or /etc/sysconfig/kubelet. Drop-ins of
//             --config-dir, in subfolders too, win over config.yaml, and flags over both (KEP-3983)
//   k3s, RKE2 --container-runtime-endpoint of k3s itself would stop its own containerd from being started;
//             so it goes to the kubelet alone, as a kubelet-arg. Files of config.yaml.d (.yaml, .yml) are read
//             after config.yaml, and "+" adds to a list; a list without it, or on the command line, replaces
//             those of earlier files
//   k0s       --cri-socket would do the same to its containerd; --kubelet-extra-args goes to the kubelet alone
//   MicroK8s  one flag a line in args/kubelet
#include "deploy/node/distribution.h"

#include <algorithm>
#include <array>
#include <optional>

namespace stasis::node {
namespace {

const std::string kUnits = "/etc/systemd/system/";
constexpr std::array kUnitFolders = {"/etc/systemd/system/", "/usr/local/lib/systemd/system/",
                                     "/usr/lib/systemd/system/", "/lib/systemd/system/"};
const std::string kMicroK8sArguments = "/var/snap/microk8s/current/args/kubelet";

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Result<std::string> TextOf(const NodeFiles& files, const std::string& path) {
  ASSIGN_OR_RETURN(const MaybeContent content, files.Read(path));
  return content ? content->bytes : std::string();
}

// Both systemd and k3s read files with certain endings only: others, half-written ones too, tell them nothing.
std::vector<std::string> NamesEnding(const NodeFiles& files, const std::string& folder,
                                     const std::vector<std::string>& endings) {
  std::vector<std::string> names = files.Names(folder);
  std::erase_if(names, [&endings](const std::string& name) {
    return std::none_of(endings.begin(), endings.end(),
                        [&name](const std::string& ending) { return name.ends_with(ending); });
  });
  return names;
}

std::optional<std::string> UnitFile(const NodeFiles& files, const std::string& service) {
  for (const std::string folder : kUnitFolders) {
    std::string path = folder + service + ".service";
    if (files.Exists(path)) return path;
  }
  return std::nullopt;
}

// The one of `services` that starts at boot; or the one that is there, when only one is.
Result<std::string> ServiceOf(const NodeFiles& files, const std::vector<std::string>& services) {
  std::vector<std::string> present, enabled;
  for (const std::string& service : services) {
    if (!UnitFile(files, service)) continue;
    present.push_back(service);
    std::string wanted = kUnits + "multi-user.target.wants/";
    const auto link = files.Read(wanted.append(service).append(".service"), false);
    if (link.ok() && *link) enabled.push_back(service);
  }
  const std::vector<std::string>& found = enabled.empty() ? present : enabled;
  if (found.size() == 1) return found[0];
  return FailedPrecondition("cannot tell whether this node runs " + services[0] + " or " +
                            services[1] + "; enable the one that it runs (systemctl enable)");
}

// ---------------------------------------------------------------- a kubelet of its own

// Files that may give a flag to the kubelet.
std::vector<std::string> FlagFiles(const NodeFiles& files) {
  std::vector<std::string> paths = {"/etc/default/kubelet", "/etc/sysconfig/kubelet",
                                    "/var/lib/kubelet/kubeadm-flags.env"};
  for (const std::string folder : kUnitFolders) {
    if (folder == "/lib/systemd/system/" &&
        files.Exists("/usr/lib/systemd/system/kubelet.service")) {
      continue;  // the same folder by its other name
    }
    paths.push_back(folder + "kubelet.service");
    const std::string drop_ins = folder + "kubelet.service.d/";
    for (const std::string& name : NamesEnding(files, drop_ins, {".conf"})) {
      paths.push_back(drop_ins + name);
    }
  }
  return paths;
}

Result<std::vector<Switch>> FlagsSet(const NodeFiles& files) {
  std::vector<Switch> set;
  for (const std::string& path : FlagFiles(files)) {
    ASSIGN_OR_RETURN(const std::string text, TextOf(files, path));
    const auto value = EndpointIn(text, Syntax::kFlag);
    if (!value.ok()) return Annotate(value.status(), path);
    if (*value) set.push_back({.path = path, .syntax = Syntax::kFlag});
  }
  return set;
}

constexpr int kMaxDropInDepth = 4;  // a link may lead back to where it lies

Status RefuseEndpointBelow(const NodeFiles& files, const std::string& folder,
                           const std::string& config, int depth = 0) {
  for (const std::string& name : files.Names(folder)) {
    const std::string path = std::string(folder).append("/").append(name);
    if (!files.Names(path).empty()) {
      if (depth == kMaxDropInDepth) continue;
      RETURN_IF_ERROR(RefuseEndpointBelow(files, path, config, depth + 1));
    } else if (name.ends_with(".conf")) {
      ASSIGN_OR_RETURN(const std::string text, TextOf(files, path));
      if (!Contains(text, "containerRuntimeEndpoint")) continue;
      return FailedPrecondition(path + " has a containerRuntimeEndpoint, which wins over that of " +
                                config + "; take it out there");
    }
  }
  return OkStatus();
}

// The kubelet's drop-ins are not edited: what is in them must not undo what config.yaml says.
Status RefuseDropIns(const NodeFiles& files, const std::string& config) {
  for (const std::string& path : FlagFiles(files)) {
    ASSIGN_OR_RETURN(const std::string text, TextOf(files, path));
    for (const std::string& folder : ValuesOf(text, "--config-dir")) {
      if (!folder.starts_with('/')) {
        return FailedPrecondition(path + " names the kubelet's --config-dir as " + folder +
                                  ", where nobody can look; write it as an absolute path");
      }
      RETURN_IF_ERROR(RefuseEndpointBelow(files, folder, config));
    }
  }
  return OkStatus();
}

Result<Switch> SwitchOfKubelet(const NodeFiles& files, const Hints& hints) {
  ASSIGN_OR_RETURN(const std::vector<Switch> flags, FlagsSet(files));
  if (flags.size() > 1) {
    return FailedPrecondition("the kubelet's --container-runtime-endpoint is set both in " +
                              flags[0].path + " and in " + flags[1].path +
                              "; leave one of them, as nobody can tell which one wins");
  }
  if (flags.size() == 1) return flags[0];
  if (!files.Exists(hints.kubelet_config)) {
    return NotFound("the kubelet's configuration " + hints.kubelet_config +
                    " does not exist; name the file with --kubelet-config");
  }
  RETURN_IF_ERROR(RefuseDropIns(files, hints.kubelet_config));
  return Switch{.path = hints.kubelet_config, .syntax = Syntax::kYaml};
}

Result<Kubelet> OwnKubelet(const NodeFiles& files, const Hints& hints) {
  Kubelet kubelet{.distribution = "kubelet", .service = "kubelet"};
  ASSIGN_OR_RETURN(kubelet.to_stasis, SwitchOfKubelet(files, hints));
  ASSIGN_OR_RETURN(const std::string text, TextOf(files, kubelet.to_stasis.path));
  const auto value = EndpointIn(text, kubelet.to_stasis.syntax);
  if (!value.ok()) return Annotate(value.status(), kubelet.to_stasis.path);
  kubelet.runtime_endpoint = value->value_or("");
  // The kubelet's own default: KubeletConfiguration v1beta1, containerRuntimeEndpoint.
  if (kubelet.runtime_endpoint.empty()) {
    kubelet.runtime_endpoint = "unix:///run/containerd/containerd.sock";
  }
  return kubelet;
}

// ---------------------------------------------------------------- k3s and RKE2

Status RefuseOtherConfiguration(const std::string& path, const std::string& text,
                                const std::string& read) {
  for (const char* option : {"--config", " -c ", "_CONFIG_FILE"}) {
    if (!Contains(text, option)) continue;
    return FailedPrecondition(path + " names another configuration file than " + read +
                              "; move what is in that one to " + read);
  }
  return OkStatus();
}

// A list takes the place of those of earlier files, unless "+" is behind its name.
Status RefuseLaterList(const NodeFiles& files, const std::string& path, const std::string& ours) {
  if (path <= ours) return OkStatus();
  ASSIGN_OR_RETURN(const std::string text, TextOf(files, path));
  if (!Contains("\n" + text, "\nkubelet-arg:")) return OkStatus();
  return FailedPrecondition(
      path + " is read after " + ours +
      " and its kubelet-arg takes the place of ours; write kubelet-arg+ there");
}

Status RefuseKubeletArguments(const std::string& path, const std::string& text) {
  if (!Contains(text, "--kubelet-arg")) return OkStatus();
  return FailedPrecondition(path +
                            " has --kubelet-arg, which takes the place of all of them that are in "
                            "files; move them to kubelet-arg in config.yaml");
}

// The runtime of k3s or RKE2: its own containerd, unless its configuration names another.
Result<std::string> RancherRuntime(const NodeFiles& files, const std::string& folder,
                                   const std::string& ours) {
  std::string runtime = "unix:///run/k3s/containerd/containerd.sock";
  std::vector<std::string> paths = {folder + "config.yaml"};
  for (const std::string& name : NamesEnding(files, folder + "config.yaml.d", {".yaml", ".yml"})) {
    paths.push_back(std::string(folder).append("config.yaml.d/").append(name));
  }
  const std::string key = "container-runtime-endpoint";
  for (const std::string& path : paths) {
    if (path == ours) continue;
    if (path != paths[0]) RETURN_IF_ERROR(RefuseLaterList(files, path, ours));
    ASSIGN_OR_RETURN(const std::string text, TextOf(files, path));
    if (Contains(text, key + "=")) {
      return FailedPrecondition(path +
                                " already gives the kubelet a container-runtime-endpoint; "
                                "take that kubelet-arg out");
    }
    const std::size_t at = text.find(key + ":");
    if (at == std::string::npos || (at > 0 && text[at - 1] != '\n')) continue;
    const std::string line = text.substr(at, text.find('\n', at) - at);
    const std::size_t begin = line.find_first_not_of(" \t\"'", key.size() + 1);
    if (begin == std::string::npos) continue;
    runtime = line.substr(begin, line.find_first_of(" \t\r\"'#", begin) - begin);
  }
  return Contains(runtime, "://") ? runtime : "unix://" + runtime;
}

Result<Kubelet> Rancher(const NodeFiles& files, const std::string& name, const std::string& folder,
                        const std::vector<std::string>& services) {
  Kubelet kubelet{.distribution = name};
  ASSIGN_OR_RETURN(kubelet.service, ServiceOf(files, services));
  const std::string unit = UnitFile(files, kubelet.service).value_or("");
  for (const std::string& path : {unit, unit + ".env"}) {
    ASSIGN_OR_RETURN(const std::string text, TextOf(files, path));
    RETURN_IF_ERROR(RefuseKubeletArguments(path, text));
    RETURN_IF_ERROR(RefuseOtherConfiguration(path, text, folder + "config.yaml"));
  }
  kubelet.to_stasis.path = folder + "config.yaml.d/90-stasis.yaml";
  ASSIGN_OR_RETURN(kubelet.runtime_endpoint, RancherRuntime(files, folder, kubelet.to_stasis.path));
  kubelet.to_stasis.whole =
      "# Written by stasis-node: the kubelet talks to stasisd, which talks to the runtime.\n"
      "kubelet-arg+:\n  - container-runtime-endpoint=" +
      std::string(kStasisEndpoint) + "\n";
  return kubelet;
}

Result<Kubelet> K3s(const NodeFiles& files) {
  return Rancher(files, "k3s", "/etc/rancher/k3s/", {"k3s", "k3s-agent"});
}

Result<Kubelet> Rke2(const NodeFiles& files) {
  return Rancher(files, "rke2", "/etc/rancher/rke2/", {"rke2-server", "rke2-agent"});
}

// ---------------------------------------------------------------- k0s

Result<std::string> CommandOf(const std::string& path, const std::string& unit) {
  const std::string key = "\nExecStart=";
  const std::size_t at = unit.find(key);
  const std::size_t end = unit.find('\n', at + 1);
  if (at == std::string::npos || end == std::string::npos || unit[end - 1] == '\\' ||
      unit.find(key, end) != std::string::npos) {
    return Unimplemented(path +
                         " has no ExecStart in one line; give k0s "
                         "--kubelet-extra-args=--container-runtime-endpoint=" +
                         std::string(kStasisEndpoint) + " by hand");
  }
  return unit.substr(at + key.size(), end - at - key.size());
}

Result<Kubelet> K0s(const NodeFiles& files) {
  Kubelet kubelet{.distribution = "k0s"};
  ASSIGN_OR_RETURN(kubelet.service, ServiceOf(files, {"k0sworker", "k0scontroller"}));
  const std::string path = UnitFile(files, kubelet.service).value_or("");
  ASSIGN_OR_RETURN(const std::string unit, TextOf(files, path));
  ASSIGN_OR_RETURN(const std::string command, CommandOf(path, unit));
  if (Contains(command, "--kubelet-extra-args")) {
    return FailedPrecondition(
        path + " already has --kubelet-extra-args; add --container-runtime-endpoint=" +
        std::string(kStasisEndpoint) + " to it by hand");
  }
  kubelet.runtime_endpoint = "unix:///run/k0s/containerd.sock";
  const std::string external = "--cri-socket=remote:";
  if (const std::size_t at = command.find(external); at != std::string::npos) {
    const std::size_t begin = at + external.size();
    kubelet.runtime_endpoint = command.substr(begin, command.find(' ', begin) - begin);
  }
  kubelet.to_stasis.path = kUnits + kubelet.service + ".service.d/90-stasis-endpoint.conf";
  kubelet.to_stasis.whole =
      "# Written by stasis-node: the kubelet talks to stasisd, which talks to the runtime.\n"
      "[Service]\nExecStart=\nExecStart=" +
      command + " --kubelet-extra-args=--container-runtime-endpoint=" + kStasisEndpoint + "\n";
  return kubelet;
}

// ---------------------------------------------------------------- MicroK8s

Result<Kubelet> MicroK8s(const NodeFiles& files) {
  Kubelet kubelet{.distribution = "microk8s",
                  .service = "snap.microk8s.daemon-kubelite",
                  .to_stasis = {.path = kMicroK8sArguments, .syntax = Syntax::kFlag}};
  ASSIGN_OR_RETURN(const std::string text, TextOf(files, kMicroK8sArguments));
  const auto value = EndpointIn(text, Syntax::kFlag);
  if (!value.ok()) return Annotate(value.status(), kMicroK8sArguments);
  if (!*value) {
    return NotFound(kMicroK8sArguments +
                    " has no --container-runtime-endpoint; put the line "
                    "--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock back");
  }
  kubelet.runtime_endpoint = value->value_or("");
  const std::string variable = "${SNAP_COMMON}";
  if (const std::size_t at = kubelet.runtime_endpoint.find(variable); at != std::string::npos) {
    kubelet.runtime_endpoint.replace(at, variable.size(), "/var/snap/microk8s/common");
  }
  if (!Contains(kubelet.runtime_endpoint, "://")) {
    kubelet.runtime_endpoint = "unix://" + kubelet.runtime_endpoint;
  }
  return kubelet;
}

std::vector<std::string> DistributionsOn(const NodeFiles& files) {
  std::vector<std::string> found;
  const auto any = [&files](const std::string& a, const std::string& b) {
    return UnitFile(files, a) || UnitFile(files, b);
  };
  if (any("k3s", "k3s-agent")) found.push_back("k3s");
  if (any("rke2-server", "rke2-agent")) found.push_back("rke2");
  if (any("k0sworker", "k0scontroller")) found.push_back("k0s");
  if (files.Exists(kMicroK8sArguments)) found.push_back("microk8s");
  if (UnitFile(files, "kubelet")) found.push_back("kubelet");
  return found;
}

Result<std::string> TheDistribution(const NodeFiles& files) {
  const std::vector<std::string> found = DistributionsOn(files);
  if (found.size() == 1) return found[0];
  if (found.empty()) {
    return NotFound(
        "no kubelet is known here: neither of kubelet, k3s, RKE2, k0s nor MicroK8s is there a "
        "systemd unit; see docs/install.md for other nodes");
  }
  return FailedPrecondition("this node has both " + found[0] + " and " + found[1] +
                            "; say which one runs it with --distribution");
}

}  // namespace

Result<Kubelet> FindKubelet(const NodeFiles& files, const Hints& hints) {
  std::string name = hints.distribution;
  if (name.empty()) {
    ASSIGN_OR_RETURN(name, TheDistribution(files));
  }
  ASSIGN_OR_RETURN(Kubelet kubelet, name == "k3s"        ? K3s(files)
                                    : name == "rke2"     ? Rke2(files)
                                    : name == "k0s"      ? K0s(files)
                                    : name == "microk8s" ? MicroK8s(files)
                                                         : OwnKubelet(files, hints));
  if (!hints.runtime_endpoint.empty()) kubelet.runtime_endpoint = hints.runtime_endpoint;
  return kubelet;
}

}  // namespace stasis::node
