# Install tourkit from the wheels in this bundle into a virtual environment. Needs no network, writes nothing here.
#   powershell -ExecutionPolicy Bypass -File install.ps1 [-Venv DIR] [-Python EXE] [-Set cpu]
# The counterpart of install.sh. install.py beside it chooses the wheels and installs them; this script checks the files
# and finds a Python. It was parsed and never run: START_HERE.md says what was tried on Windows.
param(
    [string]$Venv = (Join-Path (Get-Location).Path 'tourkit-venv'),
    [string]$Python = '',
    [string]$Set = ''
)
# Native programs write to stderr without failing: the exit codes are checked.
$ErrorActionPreference = 'Continue'
$here = $PSScriptRoot
$script:tried = @()
$script:list = ''

function Fail([int]$Code, [string]$Message) {
    [Console]::Error.WriteLine("install: $Message")
    exit $Code
}

# Check the files whose lines in SHA256SUMS have one of the texts. Name the first one whose bytes are wrong.
function Check([string[]]$Texts) {
    foreach ($text in $Texts) {
        $lines = @($sums | Where-Object { $_.Contains($text) })
        if ($lines.Count -eq 0) { Fail 1 "SHA256SUMS has no line for ${text}: copy the whole bundle again" }
        foreach ($line in $lines) {
            $hash, $path = $line -split '  ', 2
            $file = Join-Path $here $path
            if (-not (Test-Path -LiteralPath $file) -or (Get-FileHash -Algorithm SHA256 -LiteralPath $file).Hash -ne $hash) {
                Fail 1 "$path is damaged or missing: copy it again from where the bundle was made; nothing was installed"
            }
        }
    }
}

# Whether wheels of this bundle fit the interpreter, a command and its first arguments. Sets list, or adds the reason to tried.
function Test-Fits([string[]]$Candidate) {
    $command = $Candidate[0]
    $first = @($Candidate | Select-Object -Skip 1)
    if (-not (Get-Command $command -ErrorAction SilentlyContinue)) { return $false }
    $arguments = $first + @('-I', (Join-Path $here 'install.py'), 'choose') + @($Set | Where-Object { $_ })
    $said = & $command @arguments 2>$null
    if ($LASTEXITCODE -eq 0) {
        $script:list = "$said".Trim()
        return $true
    }
    # 103: py has no such version. 9009: python is only a link to the Microsoft Store.
    if ($LASTEXITCODE -eq 103 -or $LASTEXITCODE -eq 9009) { return $false }
    if ($LASTEXITCODE -ne 3) { $said = 'cannot run install.py: older than Python 3.7, or incomplete' }
    $script:tried += "$($Candidate -join ' ') ($said)"
    return $false
}

$full = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Venv).TrimEnd('\')
if (($full + '\').StartsWith($here.TrimEnd('\') + '\', [StringComparison]::OrdinalIgnoreCase)) {
    Fail 2 "$full lies inside the bundle: give a place outside, such as: -Venv $HOME\tourkit-venv"
}
$parent = Split-Path -Parent $full
if (-not (Test-Path -LiteralPath $parent -PathType Container)) { Fail 2 "no folder ${parent}: make it first" }

$checksums = Join-Path $here 'SHA256SUMS'
if (-not (Test-Path -LiteralPath $checksums)) { Fail 1 'there is no SHA256SUMS beside install.ps1: copy the whole bundle' }
$sums = @(Get-Content -LiteralPath $checksums -Encoding UTF8)
Check '  bundle.json', '  install.py', '  install.ps1'
$lists = @(Get-ChildItem -Path (Join-Path $here 'wheels') -Filter '*-*-*.txt' -Name -ErrorAction SilentlyContinue)
if ($lists.Count -eq 0) { Fail 4 'this bundle has no wheels: where it was made, run: tourkit wheels here --bundle DIR' }

# The py launcher knows every installed version. First come those that the lists are for, the newest first.
$versions = $lists | Where-Object { $_ -match '^cp3(\d+)-' } | ForEach-Object { [int]$Matches[1] } | Sort-Object -Unique -Descending
$candidates = @($versions | ForEach-Object { , @('py', "-3.$_") }) + , @('python3') + , @('python')
if ($Python) { $candidates = @(, @($Python)) }
$found = $null
foreach ($candidate in $candidates) {
    if (Test-Fits $candidate) {
        $found = $candidate
        break
    }
}
if (-not $found -and -not $Python) {
    foreach ($archive in @(Get-ChildItem -Path (Join-Path $here 'python') -Filter '*.tar.gz' -ErrorAction SilentlyContinue)) {
        Check "  python/$($archive.Name)"
        $folder = Join-Path "$full-python" ($archive.Name -replace '\.tar\.gz$', '')
        $null = New-Item -ItemType Directory -Force -Path $folder
        tar -xzf $archive.FullName -C $folder
        if ($LASTEXITCODE -ne 0) { Fail 4 "${folder}: tar cannot unpack python\$($archive.Name) there" }
        $candidate = @(Join-Path $folder 'python\python.exe')
        if (Test-Fits $candidate) {
            $found = $candidate
            break
        }
        Remove-Item -Recurse -Force -LiteralPath $folder
    }
}
if (-not $found) {
    $names = if ($tried) { $tried -join ', ' } else { 'nothing, there is none' }
    Fail 4 "no Python fits the wheels of this bundle. Tried: $names. Install one that fits, name it with -Python C:\path\to\python.exe, or make wheels for this one: tourkit wheels --help"
}

Check "  $($script:list)"
Write-Output 'Checking the wheels'
$text = Get-Content -LiteralPath (Join-Path $here $script:list) -Encoding UTF8 -Raw
Check @([regex]::Matches($text, '--hash=sha256:([0-9a-f]{64})') | ForEach-Object { $_.Groups[1].Value })
$command = $found[0]
$arguments = @($found | Select-Object -Skip 1) + @('-I', (Join-Path $here 'install.py'), 'into', $full, $script:list)
& $command @arguments
exit $LASTEXITCODE
