// Goal: invariants 2 and 8 where threads meet: what one is told of the device counts for all.
// Method: a disk that can be stopped in the middle of a checkpoint and made to fail one flush, and then to work again.

import Device
import Format
import Memory
import TestSupport
import Testing

@testable import Volume

/// A disk that stops at the first tree node written while armed, until it is let go, and fails one flush when asked.
private final class StoppingDisk: BlockDevice, @unchecked Sendable {
    let disk: SimulatedDisk
    private let lock = Lock()
    private var armed = false
    private var stopped = false
    private var failing = false

    init(_ disk: SimulatedDisk) { self.disk = disk }

    func arm() { lock.withLock { armed = true } }
    func failOneFlush() { lock.withLock { failing = true } }
    func waitUntilStopped() { lock.withLock { while !stopped { lock.wait() } } }
    func letGo() {
        lock.withLock {
            stopped = false
            lock.broadcast()
        }
    }

    var blockCount: UInt64 { disk.blockCount }
    var isReadOnly: Bool { false }
    var name: String { disk.name }
    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) { try disk.read(block, into: bytes) }
    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        lock.withLock {
            guard armed, bytes.u32(at: 0) == magicNode else { return }
            armed = false
            stopped = true
            lock.broadcast()
            while stopped { lock.wait() }
        }
        try disk.write(block, bytes)
    }
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        for (index, page) in pages.enumerated() { try write(block + UInt64(index), page) }
    }
    func flush() throws(DeviceError) {
        let fails = lock.withLock { () -> Bool in
            defer { failing = false }
            return failing
        }
        if fails { throw DeviceError(.flush, errno: EIO, "\(name): flush") }
        try disk.flush()
    }
}

private let EIO: Int32 = 5

@Suite struct FailureTests {
    /// The host reports an error in written data once. If the commit gets it, the checkpoint's own flush looks fine.
    @Test func aCheckpointDoesNotOutliveAFailedCommit() throws {
        let device = StoppingDisk(try makeDisk())
        let events = EventLog()
        let volume = try openVolume(device, events: events)
        try volume.make("a")
        try volume.write("a", pattern(5000, 1))
        device.arm()
        let checkpoint = Thread(name: "checkpoint") { try? volume.checkpointNow() }
        device.waitUntilStopped()
        try volume.make("b")
        device.failOneFlush()
        #expect(throws: OperationError.self) { try volume.commit() }
        device.letGo()
        checkpoint.join()
        #expect(throws: OperationError.self) { try volume.close() }
        #expect(events.failures.count == 1)
        #expect(try Image(device.disk).superblock.checkpoint.sequence == SequenceNumber(0))
        let again = try openVolume(device.disk.copy())
        #expect(try again.contents("a") == pattern(5000, 1))
        try again.close()
    }
}
