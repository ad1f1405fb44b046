// ThrottledDevice: another device, read no faster than asked for, so that whoever else uses it hardly notices.

import Device
import Format
import Glibc
import Memory

final class ThrottledDevice: BlockDevice, @unchecked Sendable {
    let below: any BlockDevice
    var blockCount: UInt64 { below.blockCount }
    var isReadOnly: Bool { true }
    var name: String { below.name }
    /// Bytes a second; 0: as fast as it can be.
    private let rate: UInt64
    private let lock = Lock()
    private var bytes: UInt64 = 0
    /// When what has been read so far may have been read at the earliest.
    private var due: UInt64

    init(_ below: any BlockDevice, rate: UInt64) {
        self.below = below
        self.rate = rate
        due = Self.now()
    }

    var bytesRead: UInt64 { lock.withLock { bytes } }

    private static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        let pause = lock.withLock { () -> UInt64 in
            self.bytes += UInt64(bytes.count)
            guard rate > 0 else { return 0 }
            let now = Self.now()
            // What was not used while others were slow is not made up for by more than a tenth of a second's worth.
            due = max(due, now > 100_000_000 ? now - 100_000_000 : 0) + UInt64(Double(bytes.count) / Double(rate) * 1e9)
            return due > now ? due - now : 0
        }
        if pause > 0 {
            var time = timespec(tv_sec: Int(pause / 1_000_000_000), tv_nsec: Int(pause % 1_000_000_000))
            nanosleep(&time, nil)
        }
        try below.read(block, into: bytes)
    }

    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) { throw refusal(block) }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) { throw refusal(block) }
    func flush() throws(DeviceError) {}

    private func refusal(_ block: BlockNumber) -> DeviceError {
        DeviceError(.write, errno: EROFS, "\(name): writing \(block): opened for reading only")
    }
}
