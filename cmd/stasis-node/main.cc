// stasis-node: puts stasisd between the kubelet and the runtime of this node, and takes it out again.
#include <fcntl.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>

#include "cmd/stasis-node/credentials.h"
#include "deploy/node/installer.h"
#include "engine/base/io.h"

namespace {

using stasis::Result;
using stasis::Status;
using stasis::node::Installer;
using stasis::node::InstallRequest;
using stasis::node::Journal;
using stasis::node::Phase;

constexpr int kExitFailure = 1;
constexpr int kExitOtherwise = 3;  // as systemctl status: "not active"

struct Options {
  std::string root = "/";
  bool offline = false;
  InstallRequest request;
  std::string config_file;
  std::string reason = "asked for by an administrator";
  int interval_seconds = 60;
  std::string credentials, api_server;
  std::string expected = "installed";
};

void Say(const std::string& line) { std::cerr << "stasis-node: " << line << '\n'; }

int Outcome(const Status& status) {
  if (status.ok()) return EXIT_SUCCESS;
  Say(stasis::ToText(status));
  return kExitFailure;
}

Result<Installer> Open(const Options& options) {
  ASSIGN_OR_RETURN(auto files, stasis::node::NodeFiles::Open(options.root));
  return Installer(std::move(files), stasis::node::Services(options.offline), Say);
}

Status Install(Options& options) {
  if (!options.config_file.empty()) {
    ASSIGN_OR_RETURN(options.request.config, stasis::ReadFileAt(AT_FDCWD, options.config_file));
  }
  if (!options.request.release.empty()) {
    // A release is known by its name, and what is given may be a link to it.
    std::error_code error;
    options.request.release = std::filesystem::canonical(options.request.release, error).string();
    if (error) return stasis::SyscallError(error.value(), "--release");
  }
  if (!options.credentials.empty()) {
    ASSIGN_OR_RETURN(HandedOver handed, ReadCredentials(options.credentials, options.api_server));
    options.request.config += handed.options;
    options.request.credentials = std::move(handed.files);
  }
  ASSIGN_OR_RETURN(Installer installer, Open(options));
  return installer.Install(options.request);
}

Status Uninstall(const Options& options) {
  ASSIGN_OR_RETURN(Installer installer, Open(options));
  return installer.Uninstall();
}

Status Bypass(const Options& options) {
  ASSIGN_OR_RETURN(Installer installer, Open(options));
  return installer.Bypass(options.reason);
}

Result<Journal> Look(const Options& options) {
  ASSIGN_OR_RETURN(const Installer installer, Open(options));
  return installer.Look();
}

int Show(const Options& options) {
  const auto journal = Look(options);
  if (!journal.ok()) return Outcome(journal.status());
  std::cout << NameOf(journal->phase);
  if (journal->phase != Phase::kAbsent) {
    std::cout << ": " << journal->distribution << ", service " << journal->service << ", runtime "
              << journal->runtime_endpoint;
    if (!journal->release.empty()) std::cout << ", release " << journal->release;
  }
  if (journal->phase == Phase::kBypassed) std::cout << "\nreason: " << journal->reason;
  std::cout << '\n';
  return NameOf(journal->phase) == options.expected ? EXIT_SUCCESS : kExitOtherwise;
}

sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// Whether a signal ended the wait for the next look.
bool EndedBefore(const sigset_t& signals, int seconds) {
  const timespec interval{.tv_sec = seconds, .tv_nsec = 0};
  return sigtimedwait(&signals, nullptr, &interval) > 0;
}

// Keeps the node installed until a signal: what another program took out, as `kubeadm upgrade` does, is
// put in again. The node stays installed when this ends: a pod ends for many reasons.
int Run(Options& options) {
  const sigset_t signals = BlockEndSignals();
  options.request.again = false;
  std::string said;
  do {
    const Status status = Install(options);
    const std::string text = status.ok() ? "" : stasis::ToText(status);
    if (!text.empty() && text != said) Say(text);
    said = text;
  } while (!EndedBefore(signals, options.interval_seconds));
  return EXIT_SUCCESS;
}

// For a pod, which would be started again if it ended.
int Remove(const Options& options) {
  const sigset_t signals = BlockEndSignals();
  while (Outcome(Uninstall(options)) != EXIT_SUCCESS) {
    if (EndedBefore(signals, options.interval_seconds)) return kExitFailure;
  }
  int signal = 0;
  sigwait(&signals, &signal);
  return EXIT_SUCCESS;
}

void DeclareInstall(CLI::App& command, Options& options) {
  InstallRequest& request = options.request;
  auto* release = command.add_option(
      "--release", request.release,
      "A folder with the agent's bin, lib and systemd, copied to /opt/stasis/releases; "
      "without it, the programs of the package in /usr/bin are used");
  command
      .add_option("--config", options.config_file, "A file that becomes /etc/stasis/stasisd.toml")
      ->needs(release);
  command
      .add_option("--distribution", request.hints.distribution,
                  "How this node runs its kubelet; found out unless given")
      ->check(CLI::IsMember({"kubelet", "k3s", "rke2", "k0s", "microk8s"}));
  command.add_option("--runtime-endpoint", request.hints.runtime_endpoint,
                     "The runtime's socket; what the kubelet uses unless given");
  command
      .add_option("--kubelet-config", request.hints.kubelet_config,
                  "The kubelet's configuration file")
      ->capture_default_str();
  auto* credentials =
      command
          .add_option(
              "--credentials", options.credentials,
              "A folder with token, ca.crt, tls.crt, tls.key and client-ca.crt, which the agent on "
              "the node is to serve its API with")
          ->needs(release);
  command
      .add_option("--api-server", options.api_server,
                  "The API server that --credentials are for (https://...); where pods find it, "
                  "unless given")
      ->needs(credentials);
}

void Declare(CLI::App& app, Options& options, int& exit_code) {
  app.description("Puts stasisd between the kubelet and the container runtime of this node.");
  app.set_version_flag("--version", STASIS_VERSION);
  app.require_subcommand(1);
  app.add_option("--root", options.root, "The folder that is / for the node")
      ->capture_default_str();
  app.add_flag("--offline", options.offline, "Start, stop and restart no service");

  auto* install = app.add_subcommand("install", "Install, upgrade or repair, once");
  DeclareInstall(*install, options);
  install->callback([&] { exit_code = Outcome(Install(options)); });

  auto* run = app.add_subcommand("run", "Install, and repair what others undo, until a signal");
  DeclareInstall(*run, options);
  run->add_option("--interval", options.interval_seconds, "Seconds between two looks")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  run->callback([&] { exit_code = Run(options); });

  auto* bypass =
      app.add_subcommand("bypass", "Send the kubelet back to its runtime, keep the rest");
  bypass->add_option("--reason", options.reason, "What `status` says of it")->capture_default_str();
  bypass->callback([&] { exit_code = Outcome(Bypass(options)); });

  app.add_subcommand("uninstall", "Put everything back as it was")->callback([&] {
    exit_code = Outcome(Uninstall(options));
  });
  app.add_subcommand("remove", "Uninstall, then wait for a signal")->callback([&] {
    exit_code = Remove(options);
  });
  auto* status = app.add_subcommand("status",
                                    "Say what is installed; ends with 0 when as expected, "
                                    "3 when otherwise, 1 when something is broken");
  status->add_option("--expect", options.expected, "The phase to be expected")
      ->check(CLI::IsMember({"absent", "installing", "installed", "bypassed", "uninstalling"}))
      ->capture_default_str();
  status->callback([&] { exit_code = Show(options); });
}

}  // namespace

// What no one catches ends the program, with its words on standard error (std::terminate).
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  Options options;
  CLI::App app;
  int exit_code = EXIT_SUCCESS;
  Declare(app, options, exit_code);
  CLI11_PARSE(app, argc, argv);
  return exit_code;
}
