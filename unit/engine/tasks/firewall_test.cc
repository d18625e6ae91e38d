#include "engine/tasks/firewall.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <string>
#include <thread>

#include "engine/base/io.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// What a checkpoint says is refused before a program of the machine's is given it.
std::string Refusal(const image::FirewallEntry& entry) {
  Status status;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) return;
    const auto ns = OpenAt(AT_FDCWD, "/proc/thread-self/ns/net", O_RDONLY);
    if (ns.ok()) status = RestoreFirewall(ns->get(), entry);
  }).join();
  return std::string(Message(status));
}

std::string OfIptables(const std::string& rule) {
  image::FirewallEntry entry;
  entry.set_iptables_nft("*filter\n:INPUT ACCEPT [0:0]\n" + rule + "\nCOMMIT\n");
  return Refusal(entry);
}

TEST(FirewallTest, RulesMayNotNameAProgram) {
  for (const char* const option :
       {"-M /tmp/x", "--modprobe /tmp/x", "--modprobe=/tmp/x", "--modp=/tmp/x", "-nM/tmp/x",
        "\"-M\" /tmp/x", "'--modprobe' /tmp/x", "-\\M /tmp/x"}) {
    EXPECT_THAT(OfIptables("-A INPUT " + std::string(option) + " -m nothing -j ACCEPT"),
                HasSubstr("runs a program"))
        << option;
  }
  for (const char* const rule : {"-A INPUT -m statistic --mode random --probability 0.5 -j DROP",
                                 "-A INPUT -j MASQUERADE"}) {
    EXPECT_THAT(OfIptables(rule), Not(HasSubstr("runs a program"))) << rule;
  }
}

TEST(FirewallTest, RulesMayNotReadFiles) {
  for (const char* const text :
       {"include \"/etc/shadow\"\n", "table ip a {\n  chain b { }; include \"/etc/*\"\n}\n",
        "# \"\ninclude \"/etc/shadow\"\n"}) {
    image::FirewallEntry entry;
    entry.set_nftables(text);
    EXPECT_THAT(Refusal(entry), HasSubstr("an include")) << text;
  }
  image::FirewallEntry entry;
  entry.set_nftables("table ip a {\n  comment \"does not include that\"\n}\n");
  EXPECT_THAT(Refusal(entry), Not(HasSubstr("an include")));
}

}  // namespace
}  // namespace stasis::engine
