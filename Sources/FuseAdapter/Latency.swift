// Latency: when to spin for the next request instead of sleeping, and when to keep the processors from dozing.
//
// A processor that must be woken costs more than everything the daemon does. Two things help, as long as requests follow
// each other closely: to look for the next one for a moment before going to sleep, and to tell the kernel that wake-ups
// must be quick (PM QoS: a descriptor on /dev/cpu_dma_latency holds the wish). Both cost power, and on a machine with
// other work a spin takes time from it. So:
// (L1) Spinning is earned: by requests that came soon after the last answer. A spin in vain costs several times what a
//      request earns, and being preempted while spinning, a sign that others want the processor, forbids it for a while
//      that doubles each time.
// (L2) The wish is held only while requests flow, and given up by the listener once none has come for a while. An idle
//      mount neither spins nor holds it.

import CFuseShim
import Glibc

/// The wish for quick wake-ups. Used by the listener only.
final class LatencyWish: @unchecked Sendable {
    private let descriptor: Int32
    private(set) var isHeld = false

    /// Nil when the kernel does not let us: only root may.
    init?() {
        descriptor = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
    }

    deinit { close(descriptor) }

    func hold() {
        guard !isHeld else { return }
        isHeld = true
        tell(0)
    }

    func giveUp() {
        guard isHeld else { return }
        isHeld = false
        tell(Int32.max)
    }

    private func tell(_ microseconds: Int32) { withUnsafeBytes(of: microseconds) { _ = write(descriptor, $0.baseAddress!, 4) } }
}

/// What the listener has learned of how requests arrive. All times in nanoseconds.
struct Pace {
    static let spin: UInt64 = 50_000
    static let holdAfterLast: UInt64 = 2_000_000
    /// An answer to "how long did you wait?" below which spinning would have paid.
    private static let close: UInt64 = 100_000
    private static let flowing: UInt64 = 1_000_000
    /// A turn of the spin takes less than a microsecond. In a gap this long somebody else had the processor, and not just the
    /// client for a moment: there is other work to do here.
    static let preempted: UInt64 = 60_000
    private static let shortestPenalty: UInt64 = 10_000_000
    private static let longestPenalty: UInt64 = 640_000_000

    private var credit = 0
    private var flow = 0
    private var forbiddenUntil: UInt64 = 0
    private var penalty = shortestPenalty
    /// Good spins since the last penalty.
    private var streak = 0

    func maySpin(at now: UInt64) -> Bool { credit >= 4 && now >= forbiddenUntil }
    /// Whether requests follow each other closely enough to wish for quick wake-ups.
    var isFlowing: Bool { flow >= 8 }

    mutating func spunWell() {
        credit = min(credit + 1, 16)
        flow = min(flow + 1, 16)
        streak += 1
        if streak >= 4096 { penalty = Self.shortestPenalty }
    }
    mutating func spunInVain() { credit -= 4 }
    mutating func wasPreempted(at now: UInt64) {
        credit = 0
        forbiddenUntil = now + penalty
        penalty = min(penalty * 2, Self.longestPenalty)
        streak = 0
    }
    mutating func slept(_ waited: UInt64) {
        if waited < Self.close { credit = min(credit + 1, 16) } else { credit = max(credit, 0) }
        flow = waited < Self.flowing ? min(flow + 1, 16) : 0
    }
}
