# Registers a task of Windows' Task Scheduler that runs vehclass in WSL every night. Run it once, as the user whose WSL
# has vehclass in /opt/vehclass; run it again to change the task.
#
#   powershell -ExecutionPolicy Bypass -File schedule.ps1 -At 23:00
#
# vehclass itself is for Linux, so this starts it there. The time is this machine's clock. The task runs while this user
# is logged on; a locked screen is enough. `Last Run Result` has the exit code: 0x3 says that some images failed.
# The Task Scheduler starts no run anew because of its exit code: what a night left undone, the next one does.

param(
    [string]$At = '23:00',
    [string]$Distribution = 'Debian',
    [string]$Folder = '/var/lib/vehclass',
    [string]$Container = 'az://MYACCOUNT/uploads',
    [string]$Model = 'vehicles',
    [string]$Store = 'sqlite:///results.db'
)
$ErrorActionPreference = 'Stop'

$run = "/opt/vehclass/.venv/bin/vehclass classify-batch --container $Container --model $Model --store $Store"
$action = New-ScheduledTaskAction -Execute 'wsl.exe' -Argument "-d $Distribution --cd $Folder --exec $run"
$trigger = New-ScheduledTaskTrigger -Daily -At $At

# A machine that was asleep or off runs when it is back; a run that takes until the next night is not joined by another.
$settings = New-ScheduledTaskSettingsSet -StartWhenAvailable -WakeToRun -MultipleInstances IgnoreNew `
    -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -ExecutionTimeLimit (New-TimeSpan -Hours 20)

Register-ScheduledTask -TaskName 'vehclass' -Action $action -Trigger $trigger -Settings $settings -Force `
    -Description 'Classifies what is new in a container of vehicle photos' | Out-Null
Get-ScheduledTaskInfo -TaskName 'vehclass' | Select-Object TaskName, NextRunTime
