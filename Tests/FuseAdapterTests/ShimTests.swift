// Goal: what the adapter adds to libfuse's protocol is exactly what was offered, and decodes what the kernel really sends.
// Method: the pure functions, on bytes laid out by hand.

import CFuseShim
import Format
import Glibc
import Device
import Testing
import Volume

@testable import FuseAdapter

@Suite struct CompletedInit {
    private let parallelDirectoryOperations: UInt32 = 1 << 18
    private let killPrivileges: UInt32 = 1 << 28
    private let longSetxattr: UInt32 = 1 << 29

    @Test func onlyOfferedBitsAreAdded() {
        #expect(daybook_fuse_completed_flags(1, 0) == 1)
        #expect(daybook_fuse_completed_flags(1, parallelDirectoryOperations) == 1 | parallelDirectoryOperations)
        #expect(daybook_fuse_completed_flags(0, killPrivileges) == killPrivileges)
    }

    @Test func nothingElseIsAdded() {
        #expect(daybook_fuse_completed_flags(0, .max) == parallelDirectoryOperations | killPrivileges | longSetxattr)
        #expect(daybook_fuse_completed_flags(.max, 0) == .max)
    }
}

@Suite struct Negotiation {
    private func bit(_ capability: Int32) -> UInt32 { UInt32(bitPattern: capability) }

    /// Each of these, which libfuse asks for by itself, would have the kernel lose truncations, drop its cache for nothing, keep contents
    /// that a direct write has replaced (generic/451 of xfstests), or accept writes that do not fit.
    @Test func whatWouldBeWrongIsDeclined() {
        var connection = fuse_conn_info()
        connection.capable = .max
        connection.want = .max
        negotiate(&connection)
        for capability in [
            FUSE_CAP_ATOMIC_O_TRUNC, FUSE_CAP_AUTO_INVAL_DATA, FUSE_CAP_ASYNC_DIO, FUSE_CAP_HANDLE_KILLPRIV, FUSE_CAP_WRITEBACK_CACHE,
        ] { #expect(connection.want & bit(Int32(capability)) == 0) }
    }

    @Test func nothingIsAskedForThatWasNotOffered() {
        var connection = fuse_conn_info()
        negotiate(&connection)
        #expect(connection.want == 0)
    }
}

@Suite struct RawHeader {
    /// len, opcode, unique (8), node (8), uid, gid, pid, padding
    private func header(opcode: UInt32, pid: UInt32) -> [UInt32] { [40, opcode, 0x1111_1111, 0x2222_2222, 3, 0, 4, 5, pid, 0] }

    @Test func fields() {
        let bytes = header(opcode: 16, pid: 77)
        #expect(daybook_fuse_opcode(bytes) == 16)
        #expect(daybook_fuse_unique(bytes) == 0x2222_2222_1111_1111)
        #expect(daybook_fuse_sender(bytes) == 77)
    }

    @Test(arguments: [2, 42, 18, 36] as [UInt32])
    func whatTheKernelSendsOfItsOwnAccordHasNoSender(opcode: UInt32) {
        #expect(daybook_fuse_sender(header(opcode: opcode, pid: 77)) == 0)
    }
}

@Suite struct LongSetxattr {
    /// The header, size, flags, setxattr_flags, padding, and the name and value behind them.
    private func request(_ tail: [UInt8], flags: UInt32) -> [UInt8] {
        var words = [UInt32](repeating: 0, count: 14)
        words[0] = UInt32(56 + tail.count)
        words[1] = 21
        words[10] = 3
        words[11] = 2
        words[12] = flags
        return words.withUnsafeBytes { Array($0) } + tail
    }

    @Test(arguments: [0, 1, .max] as [UInt32]) func becomesTheShortOne(flags: UInt32) {
        let tail = Array("user.a\0abc".utf8)
        var bytes = request(tail, flags: flags)
        var size = bytes.count
        #expect(daybook_fuse_shorten_setxattr(&bytes, &size) == flags)
        #expect(size == 48 + tail.count)
        #expect(bytes[0] == UInt8(size))
        #expect(Array(bytes[40..<48]) == [3, 0, 0, 0, 2, 0, 0, 0])
        #expect(Array(bytes[48..<size]) == tail)
    }

    @Test func oneCutOffIsLeftAlone() {
        var bytes = Array(request([], flags: 1).prefix(52))
        var size = bytes.count
        #expect(daybook_fuse_shorten_setxattr(&bytes, &size) == 0)
        #expect(size == 52)
    }
}

@Suite struct Entries {
    @Test func anEntryThatDoesNotFitIsNotWritten() {
        var buffer = [CChar](repeating: 0x55, count: 64)
        let name = Array("name".utf8CString)
        let needed = daybook_fuse_add_entry(&buffer, 64, name, 4, 9, 8, 1)
        #expect(needed == 32)
        buffer = [CChar](repeating: 0x55, count: 64)
        #expect(daybook_fuse_add_entry(&buffer, needed - 1, name, 4, 9, 8, 1) == 0)
        #expect(buffer.allSatisfy { $0 == 0x55 })
    }

    @Test func aNameThatIsTooLongIsRefused() {
        var buffer = [CChar](repeating: 0, count: 4096)
        let name = [CChar](repeating: 65, count: 300)
        #expect(daybook_fuse_add_entry(&buffer, 4096, name, 256, 9, 8, 1) == 0)
        #expect(daybook_fuse_add_entry(&buffer, 4096, name, 255, 9, 8, 1) > 0)
    }
}

@Suite struct Conversions {
    @Test(arguments: [0, 1, -1, 999_999_999, -1_000_000_000, -5_500_000_000, .max, .min] as [Int64])
    func timesSurvive(nanoseconds: Int64) {
        let time = timespec(Timestamp(nanoseconds: nanoseconds))
        #expect((0..<1_000_000_000).contains(time.tv_nsec))
        #expect(time.timestamp.nanoseconds == nanoseconds || nanoseconds == .min)
    }

    @Test func timesBeyondTheFormatAreClamped() {
        #expect(timespec(tv_sec: .max, tv_nsec: 0).timestamp.nanoseconds == .max)
        #expect(timespec(tv_sec: .min, tv_nsec: 0).timestamp.nanoseconds == .min)
    }

    @Test func noRefusalMakesTheKernelStopAsking() {
        let all: [OperationError] = [
            .notFound, .exists, .notDirectory, .isDirectory, .notEmpty, .nameTooLong, .invalid, .notPermitted, .accessDenied,
            .tooLarge, .tooManyLinks, .noSpace, .readOnly, .notSupported, .noAttribute, .rangeTooSmall, .argumentTooLong, .stale,
            .noSuchOffset, .busy, .io(""),
        ]
        for error in all { #expect(error.errno > 0 && error.errno != ENOSYS) }
    }
}

@Suite struct MountInformation {
    @Test func lineWithEscapes() throws {
        let line = #"42 27 0:39 / /mnt/a\040b\134c rw,relatime shared:1 - fuse.daybook /img\012x rw,user_id=0"#
        let mount = try #require(MountedFilesystem(line: line.utf8))
        #expect(mount.device == "0:39")
        #expect(mount.mountpoint == #"/mnt/a b\c"#)
        #expect(mount.type == "fuse.daybook")
        #expect(mount.source == "/img\nx")
    }

    @Test(arguments: ["", "- a b", "1 2 3 4 5 6", "1 2 3 4 5 6 -", "1 2 3 4 5 6 - t"])
    func malformedLinesAreSkipped(line: String) { #expect(MountedFilesystem(line: line.utf8) == nil) }
}

@Suite struct Membership {
    private func status(groups: String, effective: String) -> [UInt8] {
        Array("Name:\tsh\nUid:\t1000\t1000\t1000\t1000\nGroups:\t\(groups) \nCapInh:\t0000000000000000\nCapEff:\t\(effective)\n".utf8)
    }

    @Test func groupsAndRightsOfAProcess() {
        let none = "0000000000000000"
        #expect(keepsSetGroup(status: status(groups: "4 24 1002", effective: none), 24))
        #expect(!keepsSetGroup(status: status(groups: "4 24 1002", effective: none), 2))
        #expect(!keepsSetGroup(status: status(groups: "", effective: none), 0))
        #expect(keepsSetGroup(status: status(groups: "", effective: "000001ffffffffff"), 7))
        #expect(!keepsSetGroup(status: status(groups: "", effective: "000001ffffffffef"), 7))
        #expect(!keepsSetGroup(status: [], 7))
        #expect(!keepsSetGroup(status: Array("Groups:\nCapEff:\tnonsense\nCapEff:".utf8), 7))
    }

    @Test func aProcessThatIsNotThere() {
        #expect(keepsSetGroup(Caller(uid: 1000, gid: 7, pid: 0), 7))
        #expect(!keepsSetGroup(Caller(uid: 1000, gid: 8, pid: 0), 7))
        #expect(keepsSetGroup(Caller(uid: 0, gid: 8, pid: 0), 7))
        #expect(keepsSetGroup(Caller(uid: geteuid(), gid: .max, pid: UInt32(getpid())), getegid()) || geteuid() != 0)
    }
}
