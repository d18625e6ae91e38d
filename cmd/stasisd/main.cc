// stasisd: the node agent. Stands between the kubelet and the container runtime.
#include <pthread.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cmd/stasisd/service_manager.h"
#include "cri/client.h"
#include "cri/log.h"
#include "cri/shim.h"
#include "kubelet-api/api.h"
#include "kubelet-api/reports.h"

namespace {

constexpr int kExitFailure = 1;
constexpr timespec kBetweenTries{.tv_sec = 5, .tv_nsec = 0};  // to start the REST API

std::string NextToUs(const char* program) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return (self.parent_path() / program).string();
}

struct Options {
  stasis::cri::ShimOptions shim{
      .listen = "unix:///run/stasis/stasis.sock",
      .runtime_endpoint = "unix:///run/containerd/containerd.sock",
      .state_dir = "/var/lib/stasis",
      .restore = {.placeholder = NextToUs("stasis-placeholder"),
                  .page_server = NextToUs("stasis-pages")},
  };
  stasis::kubelet_api::ApiOptions api;
  stasis::kubelet_api::ReportOptions reports;
  std::string log_level = "info";
  int grace_seconds = 30;
  bool probe = false;
};

void Declare(CLI::App& app, Options& options) {
  app.description(
      "Checkpoints and restores containers for the kubelet. Serves the Container Runtime Interface "
      "and "
      "passes\neverything that is not its own on to the container runtime of the node.");
  app.footer(
      "Point the kubelet at it with --container-runtime-endpoint=unix:///run/stasis/stasis.sock.\n"
      "With a socket unit of systemd, the socket comes from there and --listen is not used.");
  app.set_version_flag("--version", STASIS_VERSION);
  app.set_config("--config", "", "Read these options from a file (TOML: name = \"value\")");
  app.add_option("--listen", options.shim.listen, "The socket to serve")->capture_default_str();
  app.add_option("--runtime-endpoint", options.shim.runtime_endpoint,
                 "The socket of the container runtime")
      ->capture_default_str();
  app.add_option("--state-dir", options.shim.state_dir,
                 "Where restored containers are remembered; survives restarts")
      ->capture_default_str();
  app.add_option("--placeholder", options.shim.restore.placeholder,
                 "The program that holds a container's place until it is restored")
      ->capture_default_str();
  app.add_option("--page-server", options.shim.restore.page_server,
                 "The program that loads the memory of lazily restored containers")
      ->capture_default_str();
  app.add_flag(
      "--lazy-pages", options.shim.restore.lazy_pages,
      "Restored containers run at once, and most of their memory is loaded while they do;\n"
      "a pod's annotation stasis.dev/lazy-pages decides for it");
  app.add_flag_callback(
      "--no-pre-copy", [&options] { options.shim.checkpoint.pre_copy = false; },
      "All memory is saved while its container stands still, in one level of images");
  app.add_option("--checkpoint-limit", options.shim.limits.at_once,
                 "Checkpoints that may be under way on this node, the kubelet's too")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--checkpoint-min-free", options.shim.limits.least_free_percent,
                 "Percent of the disk of archives that checkpoints leave free")
      ->check(CLI::Range(0, 99))
      ->capture_default_str();
  app.add_option("--checkpoint-namespace-share", options.shim.limits.namespace_percent,
                 "Percent of that disk that archives of one namespace may take; 100: any number")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--compress",
         [&options](const std::string& text) {
           options.shim.compression.usual = *stasis::archive::ParseCompression(text);
         },
         "Compression of archives: none (the default), or zstd[:LEVEL]")
      ->check([](const std::string& text) {
        return stasis::Message(stasis::archive::ParseCompression(text).status());
      });
  app.add_option_function<std::vector<std::string>>(
         "--compress-namespace",
         [&options](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) {
             (void)stasis::archive::AddNamespace(text, options.shim.compression);  // checked
           }
         },
         "NAMESPACE=COMPRESSION, of its pods whatever --compress says; may be repeated")
      ->check([](const std::string& text) {
        stasis::archive::CompressionPolicy policy;
        return stasis::Message(stasis::archive::AddNamespace(text, policy));
      });
  app.add_flag("--probe", options.probe,
               "Ask the stasisd that serves --listen for its runtime's version, and end");
  app.add_option("--log-level", options.log_level, "What is logged")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_option("--shutdown-grace", options.grace_seconds,
                 "Seconds that checkpoints and restores under way are given at the end")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void DeclareApi(CLI::App& app, stasis::kubelet_api::ApiOptions& api) {
  app.add_option("--api-listen", api.listen,
                 "ADDRESS:PORT of the REST API, for example 127.0.0.1:10260; off unless given");
  app.add_option("--api-tls-cert", api.tls.certificate,
                 "Its certificate (PEM); without one only loopback addresses are served");
  app.add_option("--api-tls-key", api.tls.key, "The key to it (PEM)");
  app.add_option("--api-client-ca", api.tls.client_ca,
                 "The authority of client certificates that are believed (PEM)");
  app.add_option("--api-server", api.api_server.url,
                 "The API server that is asked who a token is and who may do what (https://...)");
  app.add_option("--api-server-ca", api.api_server.ca_file, "The authority of its certificate");
  app.add_option("--api-server-token-file", api.api_server.token_file,
                 "The token that it knows us by; read again for each question");
  app.add_option("--api-token-audience", api.api_server.audiences,
                 "Whom bearer tokens have to be made for; the API server itself unless given");
  app.add_option("--api-user-checkpoints", api.of_a_user.checkpoints,
                 "Checkpoints that one user may have under way through the REST API")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--checkpoint-dir", api.checkpoint_dir,
                 "Where the REST API keeps archives: the kubelet's folder")
      ->capture_default_str();
  app.add_option(
      "--push-to", api.push.to,
      "Where the REST API may push images to: REGISTRY/FOLDER/{namespace}/; repeated for more; "
      "nowhere unless given");
  app.add_option(
      "--push-auth-file", api.push.auth_file,
      "Credentials for that, as `docker login` keeps them; else those of root on this node");
}

void DeclareReports(CLI::App& app, stasis::kubelet_api::ReportOptions& reports) {
  app.add_flag_callback(
      "--no-events", [&reports] { reports.events = false; },
      "No Kubernetes Events on pods; with --api-server, checkpoints and restores are told there");
  app.add_option(
      "--node-name", reports.node,
      "This node's name in the cluster: its Node object gets labels and a condition that tell what "
      "can be done here; none unless given");
}

int Probe(const std::string& endpoint) {
  const auto version = stasis::cri::RuntimeVersionAt(endpoint);
  if (!version.ok()) {
    stasis::log::Error("no answer", {{"reason", stasis::ToText(version.status())}});
    return kExitFailure;
  }
  std::cout << *version << '\n';
  return EXIT_SUCCESS;
}

// Signals that end the agent. Blocked before the first thread is made, so that no thread ever gets
// them but by sigwait(3).
sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// A container runtime is more than its API: without the one the kubelet's node is lost, so what keeps the
// other from being served is told and tried again.
void TryApi(const stasis::kubelet_api::ApiOptions& options, stasis::cri::Agent& agent,
            std::unique_ptr<stasis::kubelet_api::Api>& api, std::string& said) {
  auto started = stasis::kubelet_api::Api::Start(options, agent);
  if (started.ok()) {
    api = std::move(*started);
    stasis::Notify("STATUS=");
    stasis::log::Info("the REST API is served", {{"listen", options.listen}});
    return;
  }
  const std::string reason = stasis::ToText(started.status());
  if (reason == said) return;
  said = reason;
  stasis::Notify("STATUS=its REST API is not served: " + reason);
  stasis::log::Error("the REST API is not served, and tried again", {{"reason", reason}});
}

int ServeUntilASignal(const stasis::kubelet_api::ApiOptions& options, stasis::cri::Agent& agent,
                      const sigset_t& signals, std::unique_ptr<stasis::kubelet_api::Api>& api) {
  std::string said;
  while (true) {
    if (!api && !options.listen.empty()) TryApi(options, agent, api, said);
    const bool again = !api && !options.listen.empty();
    const int signal =
        again ? sigtimedwait(&signals, nullptr, &kBetweenTries) : sigwaitinfo(&signals, nullptr);
    if (signal > 0) return signal;
  }
}

}  // namespace

// What no one catches ends the program, with its words on standard error (std::terminate).
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  Options options;
  CLI::App app;
  Declare(app, options);
  DeclareApi(app, options.api);
  DeclareReports(app, options.reports);
  CLI11_PARSE(app, argc, argv);
  stasis::log::SetLevel(options.log_level);
  if (options.probe) return Probe(options.shim.listen);
  const sigset_t signals = BlockEndSignals();

  options.reports.api_server = options.api.api_server;
  options.reports.version = STASIS_VERSION;
  auto reports = stasis::kubelet_api::Reports::Start(options.reports);
  if (reports.ok()) {
    options.shim.events = reports->events();
  } else {  // no reason to be missed by the kubelet
    stasis::log::Error("no events are written and the node is told nothing",
                       {{"reason", stasis::ToText(reports.status())}});
  }
  const std::string served = stasis::ServedEndpoint(options.shim.listen);
  auto shim = stasis::cri::Shim::Start(options.shim);
  if (!shim.ok()) {
    stasis::log::Error("stasisd does not start", {{"reason", stasis::ToText(shim.status())}});
    return kExitFailure;
  }
  stasis::log::Info("stasisd serves", {{"version", STASIS_VERSION},
                                       {"listen", options.shim.listen},
                                       {"runtime", options.shim.runtime_endpoint}});
  std::jthread watchdog = stasis::StartWatchdog({served, options.shim.runtime_endpoint});
  std::unique_ptr<stasis::kubelet_api::Api> api;
  if (reports.ok()) reports->BeginNode((*shim)->agent());
  const int signal = ServeUntilASignal(options.api, (*shim)->agent(), signals, api);
  stasis::log::Info("stasisd ends", {{"signal", std::to_string(signal)}});
  watchdog = {};  // the socket is not served from here on
  if (reports.ok()) reports->EndNode();
  const std::chrono::seconds grace(options.grace_seconds);
  std::jthread api_ends;  // at the same time: the grace is for all of it
  if (api) api_ends = std::jthread([&] { api->Shutdown(grace); });
  (*shim)->Shutdown(grace);
  return EXIT_SUCCESS;
}
