// Goal: one writer an image, readers that hold the horizon back, and nobody locked out by them (ImageLock, K1 to K3).
// Method: several descriptors of one file; the kernel's locks belong to the open file, so one process will do.

import Device
import Format
import Glibc
import Testing

@Suite struct ImageLocks {
    let path = temporaryPath("lock")
    private func opened() throws -> FileDevice { try FileDevice(path: path, access: .readWrite) }

    init() {
        let descriptor = open(path, O_RDWR | O_CREAT, 0o600)
        ftruncate(descriptor, 1 << 20)
        close(descriptor)
    }

    @Test func oneWriter() throws {
        defer { unlink(path) }
        let first = try opened()
        let second = try opened()
        let lock = try ImageLock.acquireWriter(descriptor: first.descriptor, path: path)
        #expect(ImageLock.hasWriter(descriptor: second.descriptor))
        do throws(LockError) {
            _ = try ImageLock.acquireWriter(descriptor: second.descriptor, path: path)
            Issue.record("two writers")
        } catch {
            #expect(error.reason == .inUse)
            // Found by the lock itself: this process holds it.
            #expect(error.description.hasPrefix("\(path) is in use by "))
            #expect(error.description.hasSuffix("(pid \(getpid()))"))
        }
        lock.release()
        #expect(!ImageLock.hasWriter(descriptor: second.descriptor))
        _ = try ImageLock.acquireWriter(descriptor: second.descriptor, path: path)
        // A lock ends with its descriptor, and that with the device.
        withExtendedLifetime((first, second)) {}
    }

    @Test func aClosedDescriptorLocksNothing() throws {
        defer { unlink(path) }
        var first: FileDevice? = try opened()
        _ = try ImageLock.acquireWriter(descriptor: first!.descriptor, path: path)
        first = nil
        let second = try opened()
        let lock = try ImageLock.acquireWriter(descriptor: second.descriptor, path: path)
        lock.release()
        withExtendedLifetime(second) {}
    }

    @Test func pinsHoldTheHorizon() throws {
        defer { unlink(path) }
        let (writer, reader, other) = (try opened(), try FileDevice(path: path, access: .readOnly), try opened())
        let lock = try ImageLock.acquireWriter(descriptor: writer.descriptor, path: path)
        #expect(lock.extendHorizon(to: SequenceNumber(0)))
        #expect(lock.extendHorizon(to: SequenceNumber(10)))
        #expect(throws: LockError.self) { try ImageLock.pin(descriptor: reader.descriptor, sequence: SequenceNumber(9)) }
        let pin = try ImageLock.pin(descriptor: reader.descriptor, sequence: SequenceNumber(10))
        // Others may pin the same, and the writer may come up to it, but not further.
        let same = try ImageLock.pin(descriptor: other.descriptor, sequence: SequenceNumber(10))
        #expect(lock.extendHorizon(to: SequenceNumber(10)))
        #expect(!lock.extendHorizon(to: SequenceNumber(11)))
        pin.release()
        #expect(!lock.extendHorizon(to: SequenceNumber(11)))
        same.release()
        #expect(lock.extendHorizon(to: SequenceNumber(11)))
        #expect(throws: LockError.self) { try ImageLock.pin(descriptor: reader.descriptor, sequence: SequenceNumber(10)) }
        // The largest number there could be.
        let last = try ImageLock.pin(descriptor: reader.descriptor, sequence: SequenceNumber(.max))
        #expect(!lock.excludeReaders())
        last.release()
        #expect(lock.excludeReaders())
        withExtendedLifetime((writer, reader, other)) {}
    }

    @Test func readersNeedNoWriter() throws {
        defer { unlink(path) }
        let reader = try FileDevice(path: path, access: .readOnly)
        let pin = try ImageLock.pin(descriptor: reader.descriptor, sequence: SequenceNumber(5))
        pin.release()
        withExtendedLifetime(reader) {}
    }
}

@Suite struct MountTables {
    @Test func linesOfMountinfo() throws {
        let line = #"36 35 98:0 /sub\040dir /mnt/my\134mount\040point rw,noatime master:1 - fuse.daybook /path/to\012image rw"#
        let mount = try #require(MountedFilesystem(line: line.utf8))
        #expect(mount.root == "/sub dir")
        #expect(mount.mountpoint == #"/mnt/my\mount point"#)
        #expect(mount.source == "/path/to\nimage")
        #expect(mount.isDaybook)
        #expect(mount.inside(#"/mnt/my\mount point/a/b"#) == "/sub dir/a/b")
        #expect(mount.inside(#"/mnt/my\mount point"#) == "/sub dir")
        #expect(MountedFilesystem(line: "36 35 98:0".utf8) == nil)
        #expect(MountedFilesystem(line: "".utf8) == nil)
    }
}
