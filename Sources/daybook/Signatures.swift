// Signatures: what of other kinds is on a device, as libblkid sees it.

import CBlkid
import Glibc

enum Signatures {
    /// What libblkid knows the contents as: never a Daybook filesystem.
    static func known(_ path: String) throws(CommandError) -> String? {
        try probing(path, O_RDONLY) { (probe) throws(CommandError) in
            let status = blkid_do_fullprobe(probe)
            guard status >= 0 else { throw CommandError("\(path): cannot be searched for filesystems") }
            guard status == 0 else { return nil }
            func value(_ name: String) -> String? {
                var data: UnsafePointer<CChar>?
                return blkid_probe_lookup_value(probe, name, &data, nil) == 0 ? data.map { String(cString: $0) } : nil
            }
            if let type = value("TYPE") {
                return "\(type)" + (value("LABEL").map { " (\(shown(Array($0.utf8))))" } ?? "")
            }
            if let type = value("PTTYPE") { return "a partition table (\(type))" }
            return "data of a known kind"
        }
    }

    static func probing<R>(_ path: String, _ flags: Int32, _ body: (blkid_probe) throws(CommandError) -> R) throws(CommandError) -> R {
        // Not through O_DIRECT, whose alignment libblkid does not keep.
        let descriptor = open(path, flags | O_CLOEXEC)
        guard descriptor >= 0 else { throw .system(path) }
        defer { close(descriptor) }
        guard let probe = blkid_new_probe() else { throw .system(path) }
        defer { blkid_free_probe(probe) }
        var status = stat()
        // An empty file cannot be probed, and holds nothing.
        guard fstat(descriptor, &status) == 0 else { throw .system(path) }
        guard blkid_probe_set_device(probe, descriptor, 0, 0) == 0 else { throw CommandError("\(path): cannot be searched for filesystems") }
        blkid_probe_enable_superblocks(probe, 1)
        blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_LABEL | BLKID_SUBLKS_MAGIC | BLKID_SUBLKS_BADCSUM)
        blkid_probe_enable_partitions(probe, 1)
        blkid_probe_set_partitions_flags(probe, BLKID_PARTS_MAGIC)
        return try body(probe)
    }
}
