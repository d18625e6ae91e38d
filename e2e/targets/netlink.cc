// Netlink sockets on which the kernel answers, and one that listens to news of links.
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include "target.h"

namespace {

int Open(unsigned groups, int protocol = NETLINK_ROUTE) {
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
  CHECK(fd >= 0);
  sockaddr_nl own = {};
  own.nl_family = AF_NETLINK;
  own.nl_groups = groups;
  CHECK(bind(fd, reinterpret_cast<sockaddr*>(&own), sizeof(own)) == 0);
  return fd;
}

unsigned GroupsOf(int fd) {
  sockaddr_nl own = {};
  socklen_t length = sizeof(own);
  CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) == 0);
  return own.nl_groups;
}

// Asks for the loopback interface; the answer names its request.
void Ask(int fd, unsigned number) {
  struct {
    nlmsghdr header;
    ifinfomsg body;
  } request = {};
  request.header = {.nlmsg_len = sizeof(request),
                    .nlmsg_type = RTM_GETLINK,
                    .nlmsg_flags = NLM_F_REQUEST,
                    .nlmsg_seq = number,
                    .nlmsg_pid = 0};
  request.body.ifi_index = 1;
  CHECK(send(fd, &request, sizeof(request), 0) == static_cast<ssize_t>(sizeof(request)));
  alignas(nlmsghdr) char answer[16384];
  CHECK(recv(fd, answer, sizeof(answer), 0) > 0);
  const auto* const header = reinterpret_cast<const nlmsghdr*>(answer);
  CHECK_EQ(header->nlmsg_type, RTM_NEWLINK);
  CHECK_EQ(header->nlmsg_seq, number);
}

}  // namespace

// What no kernel knows is answered by an error, by every protocol.
void AskNonsense(int fd) {
  struct {
    nlmsghdr header;
    char body[16];
  } request = {};
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = 0x7fff;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  CHECK(send(fd, &request, sizeof(request), 0) == static_cast<ssize_t>(sizeof(request)));
  alignas(nlmsghdr) char answer[1024];
  CHECK(recv(fd, answer, sizeof(answer), MSG_DONTWAIT) > 0);
  CHECK_EQ(reinterpret_cast<const nlmsghdr*>(answer)->nlmsg_type, NLMSG_ERROR);
}

int main(int, char** argv) {
  const int asks = Open(0), listens = Open(RTMGRP_LINK | RTMGRP_IPV4_IFADDR);
  const int audit = Open(0, NETLINK_AUDIT);  // as dbus-daemon(1) has it
  Ask(asks, 1);
  AskNonsense(audit);

  target::PassCheckpoint(argv[1]);

  Ask(asks, 2);
  AskNonsense(audit);
  CHECK_EQ(GroupsOf(asks), 0);
  CHECK_EQ(GroupsOf(listens), RTMGRP_LINK | RTMGRP_IPV4_IFADDR);
}
