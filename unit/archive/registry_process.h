#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>

#include "unit/archive/archives.h"

namespace stasis::archive {

/// Debian's docker-registry on a loopback port that the kernel chose, with its storage in a folder.
class RegistryProcess {
 public:
  /// `settings` is more of its YAML.
  explicit RegistryProcess(const std::string& settings = "") {
    Spill(folder_ / "config.yml",
          "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\nstorage: {filesystem: "
          "{rootdirectory: " +
              (folder_ / "store") + "}}\nhttp: {addr: '127.0.0.1:0'}\n" + settings);
    std::string program = "docker-registry", verb = "serve", config = folder_ / "config.yml";
    char* const arguments[] = {program.data(), verb.data(), config.data(), nullptr};
    posix_spawn_file_actions_t files;
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawn_file_actions_addopen(&files, 2, log().c_str(), O_CREAT | O_WRONLY, 0600);
    EXPECT_EQ(::posix_spawnp(&pid_, program.c_str(), &files, nullptr, arguments, environ), 0)
        << "docker-registry is not installed";
    ::posix_spawn_file_actions_destroy(&files);
    WaitForAddress();
  }
  RegistryProcess(const RegistryProcess&) = delete;
  RegistryProcess& operator=(const RegistryProcess&) = delete;
  ~RegistryProcess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  /// "127.0.0.1:PORT".
  const std::string& address() const { return address_; }
  TempFolder& folder() { return folder_; }

 private:
  std::string log() const { return folder_ / "log"; }

  /// It logs its address once it listens.
  void WaitForAddress() {
    static constexpr std::string_view kBefore = "listening on ";
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < deadline) {
      const std::string text = Slurp(log());
      if (const std::size_t at = text.find(kBefore); at != text.npos) {
        const std::size_t begin = at + kBefore.size();
        const std::size_t end = text.find_first_not_of("0123456789.:", begin);
        if (end != text.npos) {
          address_ = text.substr(begin, end - begin);
          return;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    ADD_FAILURE() << "the registry does not start: " << Slurp(log());
  }

  TempFolder folder_;
  std::string address_;
  pid_t pid_ = -1;
};

}  // namespace stasis::archive
