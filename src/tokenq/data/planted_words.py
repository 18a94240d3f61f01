"""Word lists behind planted errors: what can be confused with what, and what means the same.

Written for one-line summaries of software. A group holds names of one sort, any of which can stand
for another in a sentence without making it odd; the fact is then wrong, not the language.
"""


def _groups(written: str) -> tuple[tuple[str, ...], ...]:
    """Groups of words: parted by semicolons, the words in one by blanks."""
    return tuple(tuple(group.split()) for group in written.split(";"))


# Named things. Compared as they are written here, upper and lower case included.
ENTITIES: dict[str, tuple[str, ...]] = {
    "programming language": (
        *("Python", "Perl", "Ruby", "PHP", "Java", "JavaScript", "Haskell", "OCaml", "Lua", "Tcl"),
        *("Erlang", "Clojure", "Rust", "Scala", "Fortran", "Ada", "Pascal", "Prolog", "Octave"),
    ),
    "desktop": ("GNOME", "KDE", "Xfce", "MATE", "LXDE", "LXQt", "Cinnamon", "Enlightenment"),
    "picture format": ("PNG", "JPEG", "GIF", "TIFF", "SVG", "BMP", "WebP", "DICOM"),
    "page format": ("PDF", "PostScript", "DVI", "EPUB", "DjVu", "RTF", "ODF"),
    "sound format": ("MP3", "FLAC", "Ogg", "WAV", "AAC", "MIDI", "Opus"),
    "data format": ("XML", "JSON", "YAML", "CSV", "TOML", "BibTeX", "RDF"),
    "markup": ("HTML", "LaTeX", "Markdown", "DocBook", "reStructuredText", "CSS", "TeX"),
    "database": ("MySQL", "PostgreSQL", "SQLite", "MongoDB", "Redis", "Oracle", "Firebird", "LDAP"),
    "protocol": (
        *("HTTP", "FTP", "SSH", "DNS", "IRC", "SNMP", "DHCP", "SIP", "NFS", "NTP", "XMPP"),
        *("RADIUS", "SMTP", "IMAP", "POP3", "NNTP", "TFTP", "BitTorrent", "MQTT", "RTP", "RSS"),
    ),
    "operating system": ("Linux", "FreeBSD", "Windows", "Android", "macOS", "Solaris", "MS-DOS"),
    "widget toolkit": ("GTK+", "GTK", "Qt", "Tk", "wxWidgets", "FLTK", "ncurses", "SDL", "Motif"),
    "natural language": (
        *("English", "French", "German", "Spanish", "Italian", "Portuguese", "Dutch", "Russian"),
        *("Polish", "Chinese", "Japanese", "Korean", "Arabic", "Hebrew", "Greek", "Turkish"),
        *("Thai", "Hindi", "Swedish", "Danish", "Norwegian", "Finnish", "Czech", "Hungarian"),
        *("Romanian", "Ukrainian", "Tamil", "Bengali", "Irish", "Welsh", "Catalan", "Latin"),
        *("Vietnamese", "Persian", "Tibetan", "Esperanto", "Icelandic", "Slovak", "Croatian"),
    ),
    "bus": ("USB", "Bluetooth", "PCI", "SCSI", "FireWire", "I2C", "Ethernet"),
    "version control": ("Git", "Subversion", "Mercurial", "CVS", "Bazaar"),
    "web server": ("Apache", "Nginx", "nginx", "Lighttpd", "lighttpd"),
    "editor": ("Emacs", "Vim", "Eclipse"),
    "checksum": ("MD5", "SHA-1", "SHA1", "SHA256", "SHA-256", "CRC32", "SHA512"),
    "compression": ("gzip", "bzip2", "LZ4", "LZO", "LZMA", "Snappy", "Brotli"),
    "graphics interface": ("OpenGL", "Vulkan", "Direct3D"),
    "sound system": ("ALSA", "JACK", "PulseAudio", "OSS", "PipeWire"),
    "maker of chips": ("NVIDIA", "AMD", "Intel", "Broadcom", "Realtek", "Qualcomm"),
    "company": ("Google", "Microsoft", "Amazon", "Apple", "IBM", "Facebook", "Twitter", "GitHub"),
    "browser": ("Firefox", "Chromium", "Safari", "Opera"),
    "processor": ("ARM", "MIPS", "PowerPC", "SPARC", "RISC-V", "AVR", "Alpha"),
    "display system": ("X11", "Wayland"),
    "file system": ("ext2", "ext3", "ext4", "Btrfs", "XFS", "NTFS", "FAT", "ZFS", "ReiserFS"),
    "cipher": ("RSA", "AES", "DES", "Blowfish", "DSA"),
    "security layer": ("TLS", "Kerberos", "OpenPGP", "SASL", "PAM"),
    "message queue": ("RabbitMQ", "ZeroMQ", "Kafka", "AMQP"),
    "web framework": ("Django", "Flask", "Rails", "Symfony", "Drupal", "WordPress", "Catalyst"),
    "virtual machine": (
        "Xen",
        "KVM",
        "VirtualBox",
        "VMware",
        "LXC",
        "Docker",
        "QEMU",
        "Kubernetes",
    ),
    "game of rules": ("chess", "checkers", "backgammon", "sudoku", "mahjong", "poker", "solitaire"),
    "molecule": ("DNA", "RNA", "protein"),
    "medium": ("audio", "video"),
    "input device": ("keyboard", "mouse", "joystick", "touchpad"),
    "peripheral": ("printercamera", "webcam"),
    "personal data": ("calendar", "contacts", "mail"),
    "font format": ("TrueType", "OpenType"),
    "machine resource": ("CPU", "memory", "disk", "battery", "temperature"),
    "mathematical object": ("matrix", "polynomial", "graph", "tensor"),
    "character set": ("Unicode", "ASCII", "UTF-8"),
    "body": ("planets", "stars", "satellites", "galaxies"),
}

# Words of a group that are too close to count as wrong for each other.
TOO_CLOSE: tuple[frozenset[str], ...] = (
    frozenset({"GTK", "GTK+"}),
    frozenset({"Nginx", "nginx"}),
    frozenset({"Lighttpd", "lighttpd"}),
    frozenset({"SHA-1", "SHA1"}),
    frozenset({"SHA-256", "SHA256"}),
    frozenset({"LaTeX", "TeX"}),
    frozenset({"ext2", "ext3", "ext4"}),
    frozenset({"Linux", "Android"}),
    frozenset({"Unicode", "UTF-8"}),
    frozenset({"ASCII", "UTF-8"}),
    frozenset({"RabbitMQ", "AMQP"}),
    frozenset({"Kubernetes", "Docker"}),
    frozenset({"KVM", "QEMU"}),
    frozenset({"SGML", "XML"}),
    frozenset({"XML", "RDF"}),
    frozenset({"HTML", "CSS"}),
    frozenset({"protein", "RNA"}),
    frozenset({"DSA", "RSA"}),
    frozenset({"TrueType", "OpenType"}),
    frozenset({"Java", "Clojure", "Scala"}),
    frozenset({"Symfony", "Drupal"}),
)

# Opposites. Either word of a pair can be the true one.
ANTONYMS = _groups(
    """
    static dynamic; statically dynamically; lossless lossy; fast slow; faster slower; local
    remote; locally remotely; single multiple; asynchronous synchronous; graphical text-based;
    small large; tiny huge; simple complex; public private; symmetric asymmetric; internal
    external; modern legacy; old new; online offline; add remove; adding removing; adds removes;
    enable disable; enables disables; enabling disabling; install uninstall; start stop;
    starting stopping; interactive non-interactive; high-level low-level; single-threaded
    multi-threaded; automatic manual; automatically manually; encode decode; encoder decoder;
    encodes decodes; encrypt decrypt; encrypts decrypts; encrypting decrypting; encryption
    decryption; compress decompress; compression decompression; compressing decompressing;
    compresses decompresses; compressor decompressor; assembler disassembler; minimal
    full-featured; lightweight heavyweight; serialization deserialization; open closed; safe
    unsafe; secure insecure; mutable immutable; ordered unordered; sorted unsorted; persistent
    temporary; temporary permanent; maximum minimum; maximize minimize; increase decrease; hide
    show; hides shows; hiding showing; lock unlock; locking unlocking; pack unpack; packing
    unpacking; sparse dense; finite infinite; linear nonlinear; discrete continuous; wired
    wireless; compiled interpreted; compiler interpreter; supervised unsupervised; structured
    unstructured; regular irregular; weak strong; strict lenient; deterministic random; split
    join; splitting joining; analog digital; ascending descending; create delete; creating
    deleting; creates deletes; centralized decentralized; distributed centralized; directed
    undirected; signed unsigned; positive negative; short long; hot cold; hard soft; bright
    dark; experimental stable; optional mandatory; official unofficial; early late; blocking
    non-blocking; case-sensitive case-insensitive; stateless stateful; visible invisible;
    relative absolute; parallel sequential; opaque transparent; shallow deep; monochrome color;
    flat hierarchical; standalone embedded; children adults; kids adults; easy difficult;
    complete partial; precise approximate; exact approximate; powerful weak; flexible rigid;
    extensible fixed; efficient inefficient; portable platform-specific; quickly slowly;
    high-performance slow
    """
)

# Directions and roles: the two ends of one thing.
DIRECTIONS = _groups(
    """
    client server; clients servers; input output; inputs outputs; frontend backend; front-end
    back-end; frontends backends; import export; importing exporting; importer exporter; imports
    exports; upload download; uploading downloading; uploads downloads; uploader downloader;
    send receive; sending receiving; sends receives; sender receiver; read write; reading
    writing; reader writer; readers writers; incoming outgoing; host guest; hosts guests;
    upstream downstream; left right; horizontal vertical; horizontally vertically; before after;
    inside outside; parent child; producer consumer; inbound outbound; ingress egress; forward
    backward; first last; above below; insert extract; inserting extracting; user-space
    kernel-space; userspace kernel; publisher subscriber; load save; loading saving; loads
    saves; attach detach; push pull; player recorder; startup shutdown; login logout; upgrade
    downgrade; lower upper; lowercase uppercase; buy sell; transmitter receiver
    """
)

# Two details change places around one of these words: "DNS over HTTPS", "DVI to PDF".
SWAPS: tuple[str, ...] = ("to", "into", "over", "on", "in", "from", "via", "through", "inside")

NUMBER_WORDS: tuple[tuple[str, ...], ...] = (
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("single", "double", "triple", "quadruple"),
    ("dual", "triple", "quad"),
    ("first", "second", "third", "fourth", "fifth"),
    ("one-dimensional", "two-dimensional", "three-dimensional", "four-dimensional"),
    ("2D", "3D", "4D"),
    ("2-D", "3-D", "4-D"),
    ("two-player", "three-player", "four-player"),
    ("once", "twice"),
)

# What a number of each sort can be taken for.
NUMBER_POOLS: dict[str, tuple[str, ...]] = {
    "bit": ("8", "16", "32", "64", "128", "256"),
}

# One detail under two names. Written as above; either can stand for the other.
ALIASES = _groups(
    """
    JavaScript ECMAScript; Microsoft MS; PostgreSQL Postgres; JPEG JPG; TIFF TIF; Subversion
    SVN; Linux GNU/Linux; GTK+ GTK; Node.js NodeJS; GnuPG GPG; Kubernetes K8s; SHA-1 SHA1;
    SHA-256 SHA256; UTF-8 UTF8; regex regexp; 2D two-dimensional; 3D three-dimensional; 2-D
    two-dimensional; 3-D three-dimensional; 64-bit 64bit; 32-bit 32bit; macOS OSX; MS-DOS DOS;
    reStructuredText reST; HDF5 HDF-5; IPv4 IP4; OpenPGP PGP; Bluetooth BT
    """
)

# Words that say the same in a summary of software; either can stand for the other.
SYNONYMS = _groups(
    """
    tool utility; tools utilities; small little; fast quick speedy; generate produce; generates
    produces; generating producing; displaying showing; displays shows; remove delete; removes
    deletes; removing deleting; find locate; finds locates; finding locating; images pictures;
    various several diverse; flexible versatile adaptable; extensible expandable; additional
    extra; convert transform; converts transforms; converting transforming; provides offers;
    provide offer; providing offering; allows permits; allow permit; allowing permitting; email
    e-mail; calculate compute; calculates computes; calculating computing; calculation
    computation; calculations computations; retrieve fetch; retrieving fetching; retrieves
    fetches; obtain get; obtaining getting; constructing building; easily conveniently; quickly
    rapidly; directories folders; directory folder; console terminal; examine inspect; examining
    inspecting; examines inspects; analyze analyse; synchronize sync; replacement substitute;
    large big; complete full; huge enormous; entire whole; enhanced improved; enhancements
    improvements; needed required; uses employs; useful handy helpful; helps assists aids;
    within inside; select choose; selecting choosing; transmit send; transmitting sending;
    duplicate copy; combine merge; combining merging; divide split; examples samples; children
    kids; developers programmers; computers machines; webpages web-pages; website web-site;
    websites web-sites; geographic geographical; numeric numerical; audio sound; photos
    photographs; photo photograph; movies films; movie film; administration management; managing
    administering; manage administer; simple straightforward; plugin plug-in; plugins plug-ins;
    frontend front-end; backend back-end; realtime real-time; filesystem file-system;
    filesystems file-systems; commandline command-line; graphical visual; toolkit toolset;
    powerful capable; modern up-to-date; advanced sophisticated; basic elementary; tiny
    minuscule; minimal minimalist; customizable configurable; pluggable modular; robust solid;
    reliable dependable; efficient economical; specification spec; documentation docs;
    configuration config; authentication auth; repository repo; repositories repos; information
    info; parameters params; automated automatic; functions routines; accessing reaching;
    notifications alerts; notification alert; puzzle brainteaser; statistics stats;
    cross-platform multi-platform multiplatform; high-performance high-speed; addon add-on;
    addons add-ons; routines procedures
    """
)

# Words that another can stand for, but not the other way round.
REPLACEMENTS = _groups(
    """
    containing including; via through; executing running; execute run; executes runs; create
    make; creating making; creates makes; verify check; verifying checking; verifies checks;
    lightweight light slim; manipulating processing; manipulation processing; collection set;
    configuration setup config; highly very; screen display; modify change alter; modifying
    changing altering; modifies changes alters; communicate talk; communicating talking;
    construct build; launch start; launching starting; application program app; applications
    programs apps; program application; programs applications; any arbitrary; numerous many;
    contains includes; enable allow; enables allows; interact communicate; interacting
    communicating; visualize show; visualizing showing; two 2; three 3; four 4; five 5; purely
    entirely; dealing working; designed made; developed made; interfacing communicating;
    connecting linking; controlling steering; exploring browsing; organize arrange; organizing
    arranging; organizer planner; understand read; decentralized distributed; downloading
    fetching; toolkit toolbox; module component; modules components; bindings wrappers; binding
    wrapper; daemon service; clone copy; parsing analysing; parse analyse; parses analyses;
    guide handbook
    """
)

# Ways of saying that take more than one word: (as written, said otherwise).
PHRASES: tuple[tuple[str, str], ...] = (
    ("written in", "implemented in"),
    ("based on", "built on"),
    ("interface to", "interface for"),
    ("bindings for", "bindings to"),
    ("bindings to", "bindings for"),
    ("set of", "collection of"),
    ("collection of", "set of"),
    ("suite of", "set of"),
    ("support for", "handling of"),
    ("easy to use", "simple to use"),
    ("such as", "for instance"),
    ("compatible with", "that works with"),
    ("for use with", "to be used with"),
    ("for use in", "to be used in"),
    ("in order to", "so as to"),
    ("a variety of", "a range of"),
    ("web browser", "internet browser"),
    ("text editor", "editor for text"),
    ("image viewer", "viewer for images"),
    ("file manager", "manager for files"),
    ("regular expressions", "regexps"),
    ("source code", "program sources"),
    ("operating system", "OS"),
    ("operating systems", "OSes"),
    ("unit testing", "unit tests"),
)
