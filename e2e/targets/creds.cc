// Credentials: other real, effective and saved ids, groups, capability sets, securebits.
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <array>

#include "target.h"

namespace {

using Caps = std::array<__user_cap_data_struct, 2>;

Caps OwnCaps() {
  Caps caps{};
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  CHECK(syscall(SYS_capget, &header, caps.data()) == 0);
  return caps;
}

}  // namespace

int main(int, char** argv) {
  CHECK(chmod(argv[1], 0777) == 0);
  const std::array<gid_t, 3> groups = {100, 2000, 65000};
  CHECK(setgroups(groups.size(), groups.data()) == 0);
  CHECK(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP) == 0);
  CHECK(prctl(PR_CAPBSET_DROP, CAP_MKNOD) == 0);
  CHECK(setresgid(1001, 1002, 1003) == 0);
  CHECK(setresuid(2001, 2002, 2003) == 0);
  Caps caps{};
  caps[0].permitted = 1U << CAP_KILL | 1U << CAP_CHOWN | 1U << CAP_NET_RAW;
  caps[0].effective = 1U << CAP_KILL;
  caps[0].inheritable = 1U << CAP_CHOWN;
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  CHECK(syscall(SYS_capset, &header, caps.data()) == 0);
  CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0) == 0);

  target::PassCheckpoint(argv[1]);

  uid_t real = 0;
  uid_t effective = 0;
  uid_t saved = 0;
  CHECK(getresuid(&real, &effective, &saved) == 0);
  CHECK(real == 2001 && effective == 2002 && saved == 2003);
  CHECK(getresgid(&real, &effective, &saved) == 0);
  CHECK(real == 1001 && effective == 1002 && saved == 1003);
  std::array<gid_t, 8> got_groups{};
  CHECK_EQ(getgroups(got_groups.size(), got_groups.data()), 3);
  CHECK(got_groups[0] == 100 && got_groups[1] == 2000 && got_groups[2] == 65000);
  const Caps got = OwnCaps();
  CHECK_EQ(got[0].permitted, caps[0].permitted);
  CHECK_EQ(got[0].effective, caps[0].effective);
  CHECK_EQ(got[0].inheritable, caps[0].inheritable);
  CHECK_EQ(got[1].permitted, 0);
  CHECK_EQ(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_CHOWN, 0, 0), 1);
  CHECK_EQ(prctl(PR_CAPBSET_READ, CAP_MKNOD), 0);
  CHECK_EQ(prctl(PR_CAPBSET_READ, CAP_CHOWN), 1);
  CHECK_EQ(prctl(PR_GET_SECUREBITS), SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP);
}
