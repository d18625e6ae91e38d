// Source  fork(2), clone(2), setsid(2), PR_SET_CHILD_SUBREAPER(2const), credentials(7); tested on 6.18
// Rule    A session can only be inherited or founded. A process that is in neither of its parent's sessions
//         was forked by somebody else: by a sibling with CLONE_PARENT, or by a descendant of its parent
//         that ended, so that the nearest subreaper above got the child.
// Rule    So who is in a session, and not its leader, was forked below that leader; and a process whose child
//         is in a session older than the process was born in that session: there is at most one such.
// Rule    Pids rise, so that their order tells which of two processes is the older one. Where they wrapped
//         around, plans may be missed that exist, but no wrong ones made.
// Rule    An orphan's parent gets SIGCHLD when it ends; with CLONE_PARENT it gets what it gets for the caller.
// Rule    What ends later gives its children to a process above that is still there: helpers end last-made
//         first, when all is forked, so that each is below everybody as it was when it was made.
#include "engine/tasks/fork_plan.h"

#include <sched.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace stasis::engine {
namespace {

constexpr std::size_t kNone = ~std::size_t{0};

class Planner {
 public:
  Planner(std::span<const PlannedProcess> processes, pid_t root_session)
      : processes_(processes), nodes_(processes.size()) {
    for (std::size_t i = 0; i < processes.size(); ++i) {
      by_pid_[processes[i].pid] = i;
      nodes_[i].like = i;
      if (i != 0) nodes_[processes[i].parent].children.push_back(i);
    }
    nodes_[0].born = root_session;
  }

  Result<ForkPlan> Plan() {
    ChooseBirths();
    FindAncestorsNeeded();
    Make(0, kNone, *nodes_[0].born);
    std::vector<std::size_t> waiting(processes_.size() - 1);
    for (std::size_t i = 0; i < waiting.size(); ++i) waiting[i] = i + 1;
    std::ranges::sort(waiting, {}, [this](std::size_t i) { return Age(processes_[i].pid); });
    while (!waiting.empty()) {
      const std::size_t before = waiting.size();
      std::erase_if(waiting, [this](std::size_t i) { return TryToMake(i); });
      if (waiting.size() == before) return NoWay(waiting.front());
    }
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      if (IsLeader(i)) Found(i);
      if (nodes_[i].session != processes_[i].session) return NoWay(i);
    }
    std::ranges::reverse(plan_.ends);
    return std::move(plan_);
  }

 private:
  struct Node {
    bool made = false;
    std::size_t parent = kNone;  // while the plan is carried out
    pid_t session = 0;           // at the moment
    std::size_t like = 0;
    std::optional<pid_t> born;  // the session that it must be forked in; unset: any
    std::vector<std::size_t> children;
    std::set<std::size_t> needed;  // must be above it when it is made
  };

  Status NoWay(std::size_t i) const {
    return Unimplemented("pid " + std::to_string(processes_[i].pid) + " is in session " +
                         std::to_string(processes_[i].session) +
                         ", and shares what it shares, in a way that no order of forks gives");
  }

  // Rises with the time of birth, if pids wrapped around at most once since the root's.
  long Age(pid_t pid) const {
    constexpr long kPidLimit = 4 << 20;
    return pid >= processes_[0].pid || pid == 0 ? pid : pid + kPidLimit;
  }

  bool IsLeader(std::size_t i) const { return processes_[i].session == processes_[i].pid; }

  bool Descends(std::size_t i, std::size_t ancestor) const {
    while (i != 0 && i != ancestor) i = processes_[i].parent;
    return i == ancestor;
  }

  // Parents come first, so from the last to the first.
  void ChooseBirths() {
    for (std::size_t i = processes_.size(); i-- > 1;) {
      nodes_[i].born = IsLeader(i) ? OldestNeed(i) : processes_[i].session;
    }
  }

  // The session, older than the leader `i`, that some child of it is in.
  std::optional<pid_t> OldestNeed(std::size_t i) const {
    for (const std::size_t child : nodes_[i].children) {
      const std::optional<pid_t> session = nodes_[child].born;
      if (!session || *session == processes_[i].pid) continue;
      const auto leader = by_pid_.find(*session);
      const bool older = leader != by_pid_.end() ? !Descends(leader->second, i)
                                                 : Age(*session) < Age(processes_[i].pid);
      if (older) return session;
    }
    return std::nullopt;
  }

  // True when its parent is, at some time, in the session that `i` is to be forked in.
  bool ComesFromParent(std::size_t i) const {
    const std::size_t parent = processes_[i].parent;
    const std::optional<pid_t> born = nodes_[i].born;
    return !born || *born == processes_[parent].session || born == nodes_[parent].born;
  }

  // What must be above a process so that those can be made that only it, or its session, can bring forth.
  void FindAncestorsNeeded() {
    // Young ones first: what they need, their elders need. Sessions without leader stand in between.
    std::map<long, std::vector<std::size_t>, std::greater<>> by_age;
    for (std::size_t i = 1; i < processes_.size(); ++i) {
      by_age[Age(processes_[i].pid)].push_back(i);
      if (ComesFromParent(i) || by_pid_.contains(*nodes_[i].born)) continue;
      by_age[Age(*nodes_[i].born)];
    }
    for (const auto& [age, members] : by_age) {
      for (const std::size_t i : members) PassOn(i);
      const auto session = orphans_.find(age);
      if (session != orphans_.end()) ChooseHost(session->second, age);
    }
    for (const auto& [age, needed] : orphans_) {  // of which somebody seems to be older
      if (!hosts_.contains(age)) ChooseHost(needed, std::numeric_limits<long>::max());
    }
  }

  void PassOn(std::size_t i) {
    const std::size_t parent = processes_[i].parent;
    std::set<std::size_t> needed = nodes_[i].needed;
    if (ComesFromParent(i)) {
      needed.erase(parent);
      nodes_[parent].needed.merge(needed);
      return;
    }
    needed.insert(parent);
    const auto leader = by_pid_.find(*nodes_[i].born);
    if (leader == by_pid_.end()) {
      orphans_[Age(*nodes_[i].born)].merge(needed);
      return;
    }
    needed.erase(leader->second);
    nodes_[leader->second].needed.merge(needed);
  }

  // The youngest of those that must be above the stand-in forks it; the others must be above that one.
  void ChooseHost(const std::set<std::size_t>& needed, long age) {
    std::size_t host = 0;
    std::set<std::size_t> others;
    for (const std::size_t i : needed) {
      if (Age(processes_[i].pid) > age) continue;
      others.insert(i);
      if (Age(processes_[i].pid) > Age(processes_[host].pid)) host = i;
    }
    others.erase(host);
    nodes_[host].needed.merge(others);
    hosts_[age] = host;
  }

  // --- Carrying it out ---

  void Make(std::size_t node, std::size_t parent, pid_t session) {
    nodes_[node].made = true;
    nodes_[node].parent = parent;
    nodes_[node].session = session;
    members_[session].push_back(node);
    if (node >= processes_.size()) return;
    files_[processes_[node].files_id].push_back(node);
    places_[processes_[node].fs_id].push_back(node);
  }

  void Fork(std::size_t node, std::size_t source, bool sibling, unsigned long shared = 0) {
    plan_.steps.push_back({.kind = ForkPlan::Step::Kind::kFork,
                           .node = node,
                           .source = source,
                           .sibling = sibling,
                           .shared = shared,
                           .like = nodes_[source].like});
    if (node >= processes_.size()) nodes_[node].like = nodes_[source].like;
    Make(node, sibling ? nodes_[source].parent : source, nodes_[source].session);
  }

  void Setsid(std::size_t node, pid_t session) {
    plan_.steps.push_back({.kind = ForkPlan::Step::Kind::kSetsid, .node = node});
    std::erase(members_[nodes_[node].session], node);
    nodes_[node].session = session;
    members_[session].push_back(node);
  }

  std::size_t AddExtra(pid_t pid, std::size_t source) {
    plan_.extras.push_back({.pid = pid, .like = nodes_[source].like});
    nodes_.emplace_back();
    Fork(nodes_.size() - 1, source, false);
    return nodes_.size() - 1;
  }

  // Leader `i` founds its session, once all children that must be older than it are there.
  bool Found(std::size_t i) {
    if (nodes_[i].session == processes_[i].pid) return true;
    for (const std::size_t child : nodes_[i].children) {
      const std::optional<pid_t> born = nodes_[child].born;
      if (born && born == nodes_[i].born && *born != processes_[i].pid && !nodes_[child].made) {
        return false;
      }
    }
    Setsid(i, processes_[i].pid);
    return true;
  }

  bool IsAbove(std::size_t ancestor, std::size_t node) const {
    while (node != kNone && node != ancestor) node = nodes_[node].parent;
    return node == ancestor;
  }

  bool TryToMake(std::size_t i) {
    const std::size_t parent = processes_[i].parent;
    if (!nodes_[parent].made) return false;
    const std::optional<pid_t> born = nodes_[i].born;
    if (born && IsLeaderOf(*born, parent) && !Found(parent)) return false;
    const unsigned long needed = Needed(i);
    if (needed != SharedWith(i, parent)) return TryToMakeBySharer(i, needed);
    if (!born || nodes_[parent].session == *born) {
      Fork(i, parent, false, needed);
      return true;
    }
    if (needed != 0) return TryToMakeBySharer(i, needed);
    return !ComesFromParent(i) && TryToMakeOrphan(i);
  }

  bool IsLeaderOf(pid_t session, std::size_t i) const {
    return IsLeader(i) && processes_[i].pid == session;
  }

  bool TryToMakeOrphan(std::size_t i) {
    if (processes_[i].exit_signal != SIGCHLD) return false;
    const pid_t session = *nodes_[i].born;
    const std::size_t parent = processes_[i].parent;
    const auto leader = by_pid_.find(session);
    if (leader != by_pid_.end() && (!nodes_[leader->second].made || !Found(leader->second))) {
      return false;
    }
    if (leader == by_pid_.end() && !stand_ins_.contains(session)) {
      const auto host = hosts_.find(Age(session));
      if (host == hosts_.end() || !nodes_[host->second].made) return false;
      const std::size_t stand_in = AddExtra(session, host->second);
      plan_.ends.push_back({.node = stand_in, .waiter = host->second, .reaper = 0});
      stand_ins_.insert(session);
      Setsid(stand_in, session);
    }
    const std::size_t source = BestSource(i, session, parent);
    if (source == kNone) return false;
    if (nodes_[source].parent == parent && ExitSignal(source) == SIGCHLD) {
      Fork(i, source, true);
      return true;
    }
    const std::size_t helper = AddExtra(0, source);
    plan_.ends.push_back({.node = helper, .waiter = source, .reaper = parent});
    Fork(i, helper, false);
    return true;
  }

  // A member of `session` below `parent`, and below as many of those as can be that should be above `i`.
  std::size_t BestSource(std::size_t i, pid_t session, std::size_t parent) const {
    std::size_t best = kNone;
    std::ptrdiff_t best_count = -1;
    for (const std::size_t member : members_.at(session)) {
      if (member == parent || !IsAbove(parent, member)) continue;
      std::ptrdiff_t count = 2 * std::ranges::count_if(nodes_[i].needed, [&](std::size_t above) {
                               return IsAbove(above, member);
                             });
      if (nodes_[member].parent == parent) ++count;  // saves a helper
      if (count > best_count) best = member, best_count = count;
    }
    return best;
  }

  int ExitSignal(std::size_t node) const {
    return node < processes_.size() ? processes_[node].exit_signal : SIGCHLD;
  }

  // --- What clone(2) shares ---

  unsigned long SharedWith(std::size_t i, std::size_t other) const {
    if (other >= processes_.size()) return 0;
    const auto same = [](std::uint32_t a, std::uint32_t b) { return a != 0 && a == b; };
    return (same(processes_[i].files_id, processes_[other].files_id) ? CLONE_FILES : 0u) |
           (same(processes_[i].fs_id, processes_[other].fs_id) ? CLONE_FS : 0u);
  }

  // What `i` shares with those that are there.
  unsigned long Needed(std::size_t i) const {
    return (Sharers(files_, processes_[i].files_id).empty() ? 0u : CLONE_FILES) |
           (Sharers(places_, processes_[i].fs_id).empty() ? 0u : CLONE_FS);
  }

  using Holders = std::map<std::uint32_t, std::vector<std::size_t>>;
  static std::span<const std::size_t> Sharers(const Holders& holders, std::uint32_t id) {
    const auto found = holders.find(id);
    if (id == 0 || found == holders.end()) return {};
    return found->second;
  }

  // By a sibling that shares all of it.
  bool TryToMakeBySharer(std::size_t i, unsigned long needed) {
    const bool by_files = (needed & CLONE_FILES) != 0;
    for (const std::size_t sharer : by_files ? Sharers(files_, processes_[i].files_id)
                                             : Sharers(places_, processes_[i].fs_id)) {
      if (SharedWith(i, sharer) == needed && TryToMakeBy(sharer, i)) return true;
    }
    return false;
  }

  bool TryToMakeBy(std::size_t sharer, std::size_t i) {
    const std::optional<pid_t> born = nodes_[i].born;
    if (nodes_[sharer].parent != processes_[i].parent) return false;
    if (ExitSignal(sharer) != processes_[i].exit_signal) return false;
    if (born && nodes_[sharer].session != *born) return false;
    Fork(i, sharer, true, SharedWith(i, sharer));
    return true;
  }

  const std::span<const PlannedProcess> processes_;
  std::vector<Node> nodes_;
  std::map<pid_t, std::size_t> by_pid_;
  std::map<long, std::set<std::size_t>>
      orphans_;                        // by the age of a session without leader: who is above
  std::map<long, std::size_t> hosts_;  // ... and who forks the stand-in
  std::set<pid_t> stand_ins_;
  std::map<pid_t, std::vector<std::size_t>> members_;  // by session, of the moment
  Holders files_, places_;                             // who is there, by what it has
  ForkPlan plan_;
};

}  // namespace

Result<ForkPlan> PlanForks(std::span<const PlannedProcess> processes, pid_t root_session) {
  if (processes.empty()) return InvalidArgument("a tree without processes");
  return Planner(processes, root_session).Plan();
}

}  // namespace stasis::engine
