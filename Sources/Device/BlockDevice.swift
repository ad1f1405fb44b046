// BlockDevice: what the layers above know of storage. An image file, a block device and the simulated disk look alike.
//
// The contract, in the words of Docs/TESTING.md's fault model:
// (D1) A write is on the medium only when a later flush has returned. Until then any 512-byte sector of it may be
//      there, or not, in any order with others.
// (D2) After a failed write or flush nothing may be assumed of any write since the last good flush, and no later
//      flush says anything about them.
// (D3) Reads return what was written by this process, flushed or not.
// (D4) Calls come from several threads; two that touch the same block are never in flight together if one is a write.

public import Format
public import Memory

public struct DeviceError: Error, Sendable, CustomStringConvertible {
    public enum Operation: String, Sendable { case open, read, write, flush, allocate }
    public let operation: Operation
    public let errno: Int32
    public let description: String

    public init(_ operation: Operation, errno: Int32, _ description: String) {
        self.operation = operation
        self.errno = errno
        self.description = description
    }
}

public protocol BlockDevice: AnyObject, Sendable {
    var blockCount: UInt64 { get }
    var isReadOnly: Bool { get }
    /// A name for messages.
    var name: String { get }
    /// Whether a block may have no place on the medium until `provide` (or a write) finds one: an image file with holes.
    var isThin: Bool { get }

    /// Fills `bytes` (whole blocks, page-aligned memory) from `block` on.
    func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError)
    /// Like `read` of one block, but what the host's page cache holds will do, and what is near is fetched into it as well. For
    /// blocks that carry a checksum: the caller verifies, and before it complains asks `read`, which asks the medium.
    func readCached(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError)
    /// The same if it needs no waiting for the medium; else false, and `bytes` are undefined.
    func readResident(_ block: BlockNumber, into bytes: RawBytes) -> Bool
    /// From now on `readCached` and `readResident` may use the host's page cache. Recovery comes before that (invariant 2).
    func admitHostCache()
    /// Writes `bytes` (whole blocks, page-aligned memory) from `block` on.
    func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError)
    /// Writes the pages, one block each, to consecutive blocks from `block` on.
    func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError)
    /// Everything written before is on the medium when this returns.
    func flush() throws(DeviceError)
    /// Makes sure that writes to these blocks need no new space from below (host-backed images).
    func provide(_ block: BlockNumber, count: UInt64) throws(DeviceError)
    /// Tells that the contents of these blocks are no longer wanted.
    func discard(_ block: BlockNumber, count: UInt64)
}

extension BlockDevice {
    public var isThin: Bool { false }
    public func readCached(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) { try read(block, into: bytes) }
    public func readResident(_ block: BlockNumber, into bytes: RawBytes) -> Bool { false }
    public func admitHostCache() {}
    public func provide(_ block: BlockNumber, count: UInt64) throws(DeviceError) {}
    public func discard(_ block: BlockNumber, count: UInt64) {}
}
