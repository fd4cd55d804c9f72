"""The friend in Telegram: MODEL=friend-ppo TG_BOT_TOKEN=... python telegram_bot.py. What it does: chat/telegram.py."""

from chat.telegram import main

if __name__ == "__main__":
    main()
