// Goal: every option means what mount(8) and the manual say, and nothing unknown passes in silence.
// Method: text in, settings or one clear refusal out.

import Format
import Glibc
import Testing
import Volume

@testable import daybook

@Suite struct Settings {
    @Test func whatFstabPassesIsAccepted() throws {
        let list = "rw,defaults,auto,noauto,nouser,_netdev,nofail,x-systemd.automount,X-mount.mkdir,comment=a=b,async,relatime"
        let settings = try MountSettings([list], isRoot: true)
        #expect(settings.volume.mode == .readWrite)
        #expect(settings.kernelOptions == ["rw", "dev", "suid", "async", "allow_other"])
    }

    @Test func usersMayBringNeitherDevicesNorPrograms() throws {
        #expect(try MountSettings(["user"], isRoot: true).kernelOptions == ["rw", "nodev", "noexec", "nosuid", "allow_other"])
        #expect(try MountSettings(["user,exec"], isRoot: true).kernelOptions == ["rw", "nodev", "exec", "nosuid", "allow_other"])
        #expect(try MountSettings([], isRoot: false).kernelOptions == ["rw"])
    }

    @Test func theLastOfTwoWins() throws {
        #expect(try MountSettings(["ro", "rw"], isRoot: true).volume.mode == .readWrite)
        #expect(try MountSettings(["nosuid,suid"], isRoot: true).kernelOptions.contains("suid"))
    }

    @Test func aPastPointIsReadOnly() throws {
        let settings = try MountSettings(["rw,at=17"], isRoot: true)
        #expect(settings.volume.mode == .at(.sequence(SequenceNumber(17))))
        #expect(settings.kernelOptions.first == "ro")
    }

    @Test func values() throws {
        let settings = try MountSettings(["commit=0.5,cache=32M,noatime,errors=remount-ro,writeback,latency=0"], isRoot: true)
        #expect(settings.volume.commitSeconds == 0.5)
        #expect(settings.volume.cacheBytes == 32 << 20)
        #expect(settings.volume.accessTimes == .never)
        #expect(settings.ignored == ["writeback"])
        #expect(settings.latency == false)
    }

    @Test func accessControlListsAreOnUnlessSaidOtherwise() throws {
        #expect(try MountSettings([], isRoot: true).volume.accessControlLists)
        #expect(try MountSettings(["noacl"], isRoot: true).volume.accessControlLists == false)
        #expect(try MountSettings(["noacl", "acl"], isRoot: true).volume.accessControlLists)
        #expect(try MountSettings(["acl"], isRoot: true).kernelOptions == MountSettings([], isRoot: true).kernelOptions)
    }

    @Test(arguments: [
        "bogus", "bogus=1", "commit=0", "commit=", "commit=nan", "commit=inf", "commit=-1", "cache=1M", "cache=", "cache=-1",
        "cache=99999999999999999999", "cache=9999999999G", "cache=16Q", "errors=panic", "latency=2", "at=", "at=yesterday",
        "threads=0", "ro=1", "user_id=0",
    ])
    func refused(option: String) { #expect(throws: UsageError.self) { try MountSettings([option], isRoot: true) } }

    /// mount(8) passes on what the mount table and /etc/fstab say, in an order of its own.
    @Test func remounting() throws {
        let list = "ro,noexec,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other"
        let settings = try MountSettings([list], isRoot: true)
        #expect(settings.remount)
        #expect(settings.remountFlags == UInt(MS_REMOUNT | MS_RDONLY | MS_NOEXEC | MS_RELATIME))
        #expect(settings.daemonOptions == [])
        let other = try MountSettings(["remount,rw,nosuid,nodev,sync,noatime,commit=3,writeback"], isRoot: true)
        #expect(other.remountFlags == UInt(MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_SYNCHRONOUS | MS_NOATIME))
        #expect(other.daemonOptions == ["commit"])
        #expect(try !MountSettings(["rw"], isRoot: true).remount)
    }

    @Test func sloppyIgnoresOnlyTheUnknown() throws {
        _ = try MountSettings(["bogus,ro"], isRoot: true, sloppy: true)
        #expect(throws: UsageError.self) { try MountSettings(["commit=0"], isRoot: true, sloppy: true) }
    }
}

@Suite struct Times {
    @Test(arguments: [
        ("@0", 0), ("@1.5", 1_500_000_000), ("@-2.25", -2_250_000_000), ("1970-01-01T00:00:00Z", 0),
        ("2001-09-09T01:46:40Z", 1_000_000_000_000_000_000), ("2001-09-09t03:46:40.000000001+02:00", 1_000_000_000_000_000_001),
        ("2001-09-08 20:16-0530", 999_999_960_000_000_000),
    ] as [(String, Int64)])
    func known(text: String, nanoseconds: Int64) { #expect(parseTime(text) == Timestamp(nanoseconds: nanoseconds)) }

    @Test(arguments: [
        "", "@", "@x", "@1.", "@9999999999999", "2026", "2026-1-1", "2026-13-01", "2026-02-30", "2026-02-30T00:00:00Z",
        "2026-01-01 24:00", "2026-01-01 10", "2026-01-01 10:00:00 ", "2026-01-01T10:00:00+2", "2026-01-01x", "9999-01-01",
        "２０２６-01-01",
    ])
    func refused(text: String) { #expect(parseTime(text) == nil) }

    @Test func localTimeIsLocal() {
        var parts = tm()
        (parts.tm_year, parts.tm_mon, parts.tm_mday, parts.tm_hour, parts.tm_isdst) = (126, 5, 7, 13, -1)
        #expect(parseTime("2026-06-07 13:00") == Timestamp(nanoseconds: Int64(mktime(&parts)) * 1_000_000_000))
    }
}

@Suite struct Helper {
    @Test func asMountCallsIt() {
        #expect(mountHelperArguments(["img", "dir", "-o", "rw,noatime"]) == ["mount", "-o", "rw,noatime", "--", "img", "dir"])
        #expect(mountHelperArguments(["img", "dir", "-sfnv", "-orw"]) == ["mount", "--sloppy", "--fake", "-o", "rw", "--", "img", "dir"])
        #expect(mountHelperArguments(["-t", "fuse.daybook", "img", "-r", "dir"]) == ["mount", "-o", "ro", "--", "img", "dir"])
        #expect(mountHelperArguments(["--", "-img", "dir"]) == ["mount", "--", "-img", "dir"])
        #expect(mountHelperArguments(["--help"]) == ["mount", "--help", "--"])
        #expect(mountHelperArguments(["img", "dir", "-o"]) == ["mount", "--", "img", "dir"])
    }

    @Test func byName() {
        #expect(isMountHelper("/sbin/mount.daybook") && isMountHelper("mount.fuse.daybook"))
        #expect(!isMountHelper("daybook") && !isMountHelper(""))
    }
}
